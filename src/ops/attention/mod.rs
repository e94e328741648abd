//! Multi-head self-attention without a T x T matrix in memory: out = dropout(softmax(q k' / sqrt(D))) v.
//!
//! Saved for backward: the output and `lse`, the log of each query's sum of exponentials; probabilities are recomputed from
//! it and dropout masks from the step's key. Variants: `subgroup` for drivers that run a subgroup as one vector of a CPU core,
//! `tile` everywhere.

mod cases;
mod reference;

use super::random::DropRate;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

pub use cases::{bench_cases, cases};

/// Largest head size: what the tiles of the backward kernels leave room for in 16 KiB of workgroup memory.
const MAX_HEAD: usize = 128;

/// What forward and backward share.
#[derive(Clone, Debug)]
struct Attention {
    heads: usize,
    /// Rate and site of the dropout on the probabilities.
    dropout: Option<(DropRate, u32)>,
}

/// Inputs qkv `[B*T, 3*C]` (q, k, v side by side, heads within each) and lens `[B]`; keys at and past a length are masked.
/// Outputs out `[B*T, C]` and lse `[B, H, T]` in f32.
#[derive(Clone, Debug)]
pub struct FlashAttention(Attention);

/// Inputs qkv, lens, out, lse, dout; output dqkv.
#[derive(Clone, Debug)]
pub struct FlashAttentionBwd(Attention);

/// Attention of every sequence to itself. `dropout` is that of the probabilities; none where nothing is trained.
pub fn flash_attention(
    r: &mut dyn Recorder,
    qkv: Var,
    lens: Var,
    heads: usize,
    dropout: Option<DropRate>,
) -> Result<Var> {
    let dropout = dropout.filter(|d| r.training() && d.threshold > 0).map(|d| (d, r.site()));
    r.apply1(FlashAttention(Attention { heads, dropout }), &[qkv, lens])
}

/// The sizes behind a packed qkv.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    head: usize,
}

impl Sizes {
    fn rows(&self) -> usize {
        self.batch * self.heads * self.tokens
    }

    /// Vectors of four that hold a head's row.
    fn vectors(&self) -> usize {
        self.head.div_ceil(4)
    }

    /// Multiply-adds of one product of all queries with all keys, times two.
    fn product_flops(&self) -> f64 {
        2.0 * self.rows() as f64 * self.tokens as f64 * self.head as f64
    }
}

/// How the `tile` kernels divide their work: 8 x `ty` threads, `tm` held rows a thread row, `tn` streamed rows a thread column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiles {
    ty: usize,
    tm: usize,
    tn: usize,
}

impl Tiles {
    fn held(self) -> usize {
        self.ty * self.tm
    }

    /// Workgroup memory; `tiles` of the held rows.
    fn bytes(self, sizes: &Sizes, tiles: usize) -> usize {
        let row = 16 * (sizes.vectors() | 1);
        let weights = 4 * self.tn * self.held() * if self.tn == 4 { 9 } else { 8 };
        let partial = if tiles == 1 { 32 * self.held() } else { 0 };
        row * (tiles * self.held() + 8 * self.tn) + weights + partial
    }

    /// The largest that fits; of the largest only if the device is kept busy with it.
    fn choose(sizes: &Sizes, caps: &Caps, tiles: usize) -> Tiles {
        let scheme = |(ty, tm, tn)| Tiles { ty, tm, tn };
        let smallest = scheme((4, 1, 2));
        let groups = |t: Tiles| sizes.batch * sizes.heads * sizes.tokens.div_ceil(t.held());
        [(8, 8, 4), (8, 4, 4), (8, 2, 4), (8, 2, 2), (8, 1, 2), (4, 1, 2)]
            .map(scheme)
            .into_iter()
            .filter(|t| t.bytes(sizes, tiles) <= caps.limits.workgroup_bytes as usize)
            // Registers: eight rows a thread hold their sums only in forward and for heads up to 64.
            .filter(|t| t.tm < 8 || (tiles == 1 && sizes.head <= 64 && groups(*t) >= 64))
            .find(|t| t.tm == 1 || t.held() < 2 * sizes.tokens)
            .unwrap_or(smallest)
    }
}

impl Attention {
    fn sizes(&self, op: &str, ins: &[Spec]) -> Result<Sizes> {
        let (qkv, lens) = (&ins[0], &ins[1]);
        let (batch, width) = (lens.elements(), qkv.width());
        let fits = qkv.dtype != DType::U32 && qkv.shape.len() == 2 && lens.dtype == DType::U32 && self.heads > 0;
        if !fits || batch == 0 || qkv.rows() == 0 || qkv.rows() % batch != 0 || width % (3 * self.heads) != 0 {
            let wanted = format!("float [B*T, 3*C] and u32 [B] expected, C a multiple of {} heads", self.heads);
            return Err(shape_error(op, ins, wanted));
        }
        let head = width / (3 * self.heads);
        if head == 0 || head > MAX_HEAD {
            return Err(shape_error(op, ins, format!("head size {head}, 1 to {MAX_HEAD} supported")));
        }
        Ok(Sizes { batch, tokens: qkv.rows() / batch, heads: self.heads, head })
    }

    fn outputs(&self, op: &str, ins: &[Spec]) -> Result<Vec<Spec>> {
        let s = self.sizes(op, ins)?;
        let out = Spec::new(&[s.batch * s.tokens, s.heads * s.head], ins[0].dtype);
        Ok(vec![out, Spec::f32(&[s.batch, s.heads, s.tokens])])
    }

    fn key(&self, file: &'static str, entry: &'static str, io: &Io, sizes: &Sizes) -> KernelKey {
        KernelKey::new(file, entry).with("D", sizes.head).with("T_IO", io.ins[0].dtype.wgsl())
    }

    /// `key` with the dropout constants, and `bindings` with the step that dropout needs.
    fn with_dropout(&self, key: KernelKey, mut bindings: Vec<Bind>) -> (KernelKey, Vec<Bind>) {
        let mut key = key.with("DROPOUT", self.dropout.is_some());
        if self.dropout.is_some() {
            key = key.with("STEP_BINDING", bindings.len());
            bindings.push(Bind::Step);
        }
        (key, bindings)
    }

    fn immediates(&self, s: &Sizes) -> Immediates {
        let (rate, site) = self.dropout.unwrap_or((DropRate { threshold: 0, scale: 1.0 }, 0));
        let sizes =
            Immediates::new().u32(s.batch).u32(s.tokens).u32(s.heads).f32((1.0 / (s.head as f64).sqrt()) as f32);
        sizes.u32(site).u32(rate.threshold).f32(rate.scale)
    }
}

/// Lanes of the `subgroup` kernels, where they are legal and of use: a CPU driver with one subgroup size.
fn lanes(caps: &Caps) -> Option<usize> {
    caps.fixed_subgroup().filter(|s| caps.is_cpu() && s.is_power_of_two() && *s <= 32).map(|s| s as usize)
}

/// Queries of a `subgroup` workgroup. 32 are a tenth faster than 16 and take twice as long to compile; five times with
/// f16 storage and more with larger heads.
fn queries(sizes: &Sizes, lanes: usize, dtype: DType) -> usize {
    if sizes.tokens >= 128 && sizes.head <= 64 && dtype == DType::F32 { 32 } else { lanes.max(16) }
}

fn variants(subgroup: bool) -> Vec<Variant> {
    let names: &[&str] = if subgroup { &["subgroup", "tile"] } else { &["tile"] };
    names.iter().map(|name| Variant::new(*name, &[])).collect()
}

fn bytes(specs: &[&Spec]) -> f64 {
    specs.iter().map(|s| s.bytes() as f64).sum()
}

impl Op for FlashAttention {
    fn name(&self) -> &'static str {
        "flash_attention_fwd"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 2)?;
        self.0.outputs(self.name(), ins)
    }

    fn variants(&self, _io: &Io, caps: &Caps) -> Vec<Variant> {
        variants(lanes(caps).is_some())
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let s = self.0.sizes(self.name(), &io.ins)?;
        let (key, rows) = match lanes(caps).filter(|_| variant.name == "subgroup") {
            Some(lanes) => {
                let rows = queries(&s, lanes, io.ins[0].dtype);
                let key = self.0.key("attention_subgroup_fwd.wgsl", "flash_attention_fwd", io, &s);
                (key.with("S", lanes).with("QB", rows).with("TK", 1), rows)
            }
            None => {
                let t = Tiles::choose(&s, caps, 1);
                let key = self.0.key("attention_tile_fwd.wgsl", "flash_attention_fwd", io, &s);
                (key.with("TY", t.ty).with("TM", t.tm).with("TN", t.tn), t.held())
            }
        };
        let (key, binds) = self.0.with_dropout(key, vec![Bind::In(0), Bind::In(1), Bind::Out(0), Bind::Out(1)]);
        let groups = s.batch * s.heads * s.tokens.div_ceil(rows);
        let grid = fold_grid(groups, caps.limits.workgroups_per_dimension);
        let cost = Cost { flops: 2.0 * s.product_flops(), bytes: bytes(&[&io.ins[0], &io.outs[0], &io.outs[1]]) };
        Ok(Launch::new(key, &binds, self.0.immediates(&s), grid, cost).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0).filter(|_| b.wants(0)) {
            let ins = [b.input(0), b.input(1), b.output(0), b.output(1), dout];
            b.record(FlashAttentionBwd(self.0.clone()), &ins, &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let Ok(sizes) = self.0.sizes(self.name(), &io.ins) else { return Vec::new() };
        reference::forward(&self.0, &sizes, ins, step).map(|(values, _)| values).into()
    }

    /// For the weighted sums; `worst` adds what the probabilities' own errors make.
    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].rows() / io.ins[1].elements().max(1))
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let Ok(sizes) = self.0.sizes(self.name(), &io.ins) else { return f64::INFINITY };
        let bounds = &reference::forward(&self.0, &sizes, ins, step)[k].1;
        worst_within(bounds, &io.outs[k], got, want)
    }
}

impl Op for FlashAttentionBwd {
    fn name(&self) -> &'static str {
        "flash_attention_bwd"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 5)?;
        let forward = self.0.outputs(self.name(), ins)?;
        if ins[2] != forward[0] || ins[3] != forward[1] || ins[4] != forward[0] {
            return Err(shape_error(self.name(), ins, "qkv, lens, out, lse, dout of one forward expected"));
        }
        Ok(vec![ins[0].clone()])
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        let sizes = self.0.sizes(self.name(), &io.ins);
        // The sums of dk and dv: 4 * S keys of two tensors in workgroup memory.
        let sums = lanes(caps).zip(sizes.ok()).map(|(lanes, s)| 128 * s.vectors() * lanes);
        variants(sums.is_some_and(|bytes| bytes <= caps.limits.workgroup_bytes as usize))
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let s = self.0.sizes(self.name(), &io.ins)?;
        let fold = |groups| fold_grid(groups, caps.limits.workgroups_per_dimension);
        let immediates = || self.0.immediates(&s);
        let mut scratch = vec![4 * s.rows() as u64];
        let key = self.0.key("attention_delta.wgsl", "flash_attention_bwd_delta", io, &s).with("DROPOUT", false);
        let cost =
            Cost { flops: 2.0 * (s.rows() * s.head) as f64, bytes: bytes(&[&io.ins[2], &io.ins[4], &io.ins[3]]) };
        let binds = [Bind::In(4), Bind::In(2), Bind::Scratch(0)];
        let delta = Launch::new(key, &binds, immediates(), fold(s.rows().div_ceil(64)), cost);
        let mut launches = Vec::new();
        let moved = bytes(&[&io.ins[0], &io.ins[4], &io.ins[3], &io.ins[3]]);
        if let Some(lanes) = lanes(caps).filter(|_| variant.name == "subgroup") {
            let ins = [Bind::In(0), Bind::In(1), Bind::In(4), Bind::In(3), Bind::In(2)];
            let mut binds = [&ins[..], &[Bind::Out(0), Bind::Scratch(0)]].concat();
            if io.outs[0].dtype != DType::F32 {
                scratch.push(16 * (s.rows() * s.vectors().next_multiple_of(lanes)) as u64);
                binds.push(Bind::Scratch(1));
            }
            let key = self.0.key("attention_subgroup_bwd.wgsl", "flash_attention_bwd", io, &s);
            let key = key.with("S", lanes).with("QB", queries(&s, lanes, io.ins[0].dtype));
            let (key, binds) = self.0.with_dropout(key, binds);
            let cost = Cost { flops: 5.0 * s.product_flops(), bytes: moved + bytes(&[&io.outs[0], &io.ins[2]]) };
            launches.push(Launch::new(key, &binds, immediates(), fold(s.batch * s.heads), cost));
        } else {
            launches.push(delta);
            let binds = vec![Bind::In(0), Bind::In(1), Bind::In(4), Bind::In(3), Bind::Scratch(0), Bind::Out(0)];
            let t = Tiles::choose(&s, caps, 2);
            let groups = s.batch * s.heads * s.tokens.div_ceil(t.held());
            for (entry, part, products, thirds) in
                [("flash_attention_bwd_dkv", "dkv", 4.0, 2.0), ("flash_attention_bwd_dq", "dq", 3.0, 1.0)]
            {
                let key = self.0.key("attention_tile_bwd.wgsl", entry, io, &s).with("PART", part);
                let key = key.with("TY", t.ty).with("TM", t.tm).with("TN", t.tn);
                let (key, binds) = self.0.with_dropout(key, binds.clone());
                let written = bytes(&[&io.outs[0]]) * thirds / 3.0;
                let cost = Cost { flops: products * s.product_flops(), bytes: moved + written };
                launches.push(Launch::new(key, &binds, immediates(), fold(groups), cost));
            }
        }
        Ok(Program { launches, scratch })
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("gradients of gradients are not taken"))
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let Ok(sizes) = self.0.sizes(self.name(), &io.ins) else { return Vec::new() };
        vec![reference::backward(&self.0, &sizes, ins, step).0]
    }

    /// For the sums over queries or keys; `worst` adds what the errors of dS make.
    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].rows() / io.ins[1].elements().max(1))
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let Ok(sizes) = self.0.sizes(self.name(), &io.ins) else { return f64::INFINITY };
        let bounds = reference::backward(&self.0, &sizes, ins, step).1;
        worst_within(&bounds, &io.outs[k], got, want)
    }
}

/// Worst |error| / bound, each element by its own bound; a bound of zero asks for the exact value.
fn worst_within(bounds: &[f64], spec: &Spec, got: &[f64], want: &[f64]) -> f64 {
    let one = |i: usize| match bounds[i] {
        0.0 if got[i] != want[i] => f64::INFINITY,
        bound => worst_ratio(Tolerance::EXACT.plus_abs(bound), spec, &got[i..=i], &want[i..=i]),
    };
    (0..got.len()).map(one).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_kibibytes_hold_the_smallest_tiles_of_the_largest_head() {
        let sizes = Sizes { batch: 1, tokens: 512, heads: 1, head: MAX_HEAD };
        for tiles in [1, 2] {
            assert!(Tiles { ty: 4, tm: 1, tn: 2 }.bytes(&sizes, tiles) <= 16384);
        }
    }
}
