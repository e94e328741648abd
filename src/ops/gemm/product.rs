//! One matrix product as launches: the problem, where its operands stand, and the kernels of each variant.

use super::Gelu;
use super::variants::Scheme;
use crate::error::{Error, Kind, Result};
use crate::gpu::{Caps, KernelKey};
use crate::ops::{Bind, Cost, DType, Immediates, Launch, Program, Store, Variant, fold_grid};

/// Which operand is transposed; all are row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A[M,K] B[K,N]
    Nn,
    /// A[M,K] B[N,K]
    Nt,
    /// A[K,M] B[K,N]
    Tn,
}

/// What happens to a finished sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    None,
    /// C = AB + bias, bias f32[N].
    Bias,
    /// pre = AB + bias and C = gelu(pre), both stored.
    BiasGelu(Gelu),
    /// C = AB * gelu'(pre).
    GeluGrad(Gelu),
}

/// C[M,N] (+)= alpha op(A) op(B), `batch` times over.
#[derive(Clone, Debug)]
pub struct Product {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    /// Elements from one row to the next, in memory.
    pub lda: usize,
    pub ldb: usize,
    pub ldc: usize,
    /// Elements from one batch entry to the next.
    pub stride_a: usize,
    pub stride_b: usize,
    pub stride_c: usize,
    pub alpha: f32,
    pub a: DType,
    pub b: DType,
    pub c: DType,
    pub epilogue: Epilogue,
}

/// Where the operands stand. `extra`: bias; bias and pre; or pre, as the epilogue asks.
#[derive(Clone, Debug)]
pub struct Operands {
    pub a: Bind,
    pub b: Bind,
    pub c: Bind,
    pub extra: Vec<Bind>,
}

impl Product {
    /// Dense operands of these types, one batch entry.
    pub fn new(layout: Layout, [m, n, k]: [usize; 3], [a, b, c]: [DType; 3]) -> Product {
        let lda = if layout == Layout::Tn { m } else { k };
        let ldb = if layout == Layout::Nt { k } else { n };
        let (stride_a, stride_b, stride_c) = (m * k, k * n, m * n);
        let (alpha, epilogue) = (1.0, Epilogue::None);
        Product { layout, m, n, k, batch: 1, lda, ldb, ldc: n, stride_a, stride_b, stride_c, alpha, a, b, c, epilogue }
    }

    pub fn cost(&self) -> Cost {
        let batch = self.batch as f64;
        let (m, n, k) = (self.m as f64, self.n as f64, self.k as f64);
        let outputs = if matches!(self.epilogue, Epilogue::BiasGelu(_) | Epilogue::GeluGrad(_)) { 2.0 } else { 1.0 };
        let (a, b, c) = (self.a.bytes() as f64, self.b.bytes() as f64, self.c.bytes() as f64);
        Cost { flops: 2.0 * m * n * k * batch, bytes: batch * (m * k * a + k * n * b + m * n * c * outputs) }
    }

    /// Vector width of accesses along rows of `extent` elements.
    fn vector(extent: usize, ld: usize, stride: usize, batch: usize) -> u32 {
        let aligned = |x: usize| x.is_multiple_of(4);
        if aligned(extent) && aligned(ld) && (batch == 1 || aligned(stride)) { 4 } else { 1 }
    }

    /// How K is cut into parts, for `tiles` tiles of C.
    fn cut(&self, tiles: usize, caps: &Caps) -> Cut {
        let whole = Cut { parts: 1, size: self.k.next_multiple_of(64), side_by_side: false };
        if self.epilogue != Epilogue::None {
            return whole;
        }
        let held = 4 * self.m * self.n * self.batch;
        let fits = caps.limits.binding_bytes as usize / held.max(1);
        let parts_of = |size: usize, side_by_side| Cut { parts: self.k.div_ceil(size), size, side_by_side };
        // On a CPU an operand with rows along N or M is walked down its columns: past some 1,500 rows what one tile has
        // fetched is gone from cache and address translation before the next tile wants it (tn 256x1024x4096: 15 GF/s
        // whole, 39 in parts of 512).
        const STAYS: usize = 512;
        if caps.is_cpu() && self.layout != Layout::Nt && self.k >= 3 * STAYS {
            let parts = self.k.div_ceil(STAYS);
            // With few tiles side by side, to keep every core busy; otherwise that would only take memory. What is stored
            // as f16 is not added to part by part.
            return match tiles * self.batch < 64 || self.c == DType::F16 {
                true if parts <= fits && held * parts <= 64 << 20 => parts_of(STAYS, true),
                true => whole,
                false => parts_of(STAYS, false),
            };
        }
        // A result of few tiles with a long K leaves a device idle otherwise.
        const SHORTEST: usize = 256;
        let wanted = if caps.is_cpu() { 16 } else { 256 };
        let parts = (wanted / (tiles * self.batch).max(1)).min(self.k / SHORTEST).min(64).min(fits);
        if parts < 2 { whole } else { parts_of(self.k.div_ceil(parts).next_multiple_of(64), true) }
    }

    /// Appends the launches of this product by `variant` to `program`. Scratch memory `slot` (the next one, or one
    /// that earlier launches of the same program are done with) is used where K is cut.
    pub fn launch(
        &self,
        operands: &Operands,
        store: Store,
        variant: &Variant,
        slot: usize,
        caps: &Caps,
        program: &mut Program,
    ) -> Result<()> {
        let scheme = Scheme::from_args(&variant.args);
        let (bm, bn) = scheme.tile();
        let (tiles_m, tiles_n) = (self.m.div_ceil(bm), self.n.div_ceil(bn));
        let cut = self.cut(tiles_m * tiles_n, caps);
        let splits = if cut.side_by_side { cut.parts } else { 1 };
        let limit = caps.limits.workgroups_per_dimension;
        if self.batch * splits > limit as usize {
            let attempted = format!("launch a batch of {} products {}x{}x{}", self.batch, self.m, self.n, self.k);
            return Err(Error::new(Kind::Limit, attempted, format!("this adapter takes {limit} at a time"))
                .hint("use a smaller batch or more micro-batches"));
        }
        let (a_extent, b_extent) = match self.layout {
            Layout::Nn => (self.k, self.n),
            Layout::Nt => (self.k, self.k),
            Layout::Tn => (self.m, self.n),
        };
        let (ldc, stride_c, c) =
            if splits > 1 { (self.n, self.m * self.n, DType::F32) } else { (self.ldc, self.stride_c, self.c) };
        let vc = Self::vector(self.n, ldc, stride_c, self.batch * splits);
        let (epilogue, gelu) = match self.epilogue {
            Epilogue::None => ("none", Gelu::Erf),
            Epilogue::Bias => ("bias", Gelu::Erf),
            Epilogue::BiasGelu(gelu) => ("bias_gelu", gelu),
            Epilogue::GeluGrad(gelu) => ("dgelu", gelu),
        };
        let layout = match self.layout {
            Layout::Nn => "nn",
            Layout::Nt => "nt",
            Layout::Tn => "tn",
        };
        let kernel = scheme
            .kernel()
            .with("LAYOUT", layout)
            .with("TA", self.a.wgsl())
            .with("TB", self.b.wgsl())
            .with("TC", c.wgsl())
            .with("EPILOGUE", epilogue)
            .with("GELU", if gelu == Gelu::Erf { "erf" } else { "tanh" })
            .with("VA", Self::vector(a_extent, self.lda, self.stride_a, self.batch))
            .with("VB", Self::vector(b_extent, self.ldb, self.stride_b, self.batch))
            .with("VC", vc)
            .with("KTAIL", !self.k.is_multiple_of(4));
        let [x, y, _] = fold_grid(tiles_m * tiles_n, limit);
        let target = if splits > 1 { Bind::Scratch(slot) } else { operands.c };
        let mut bindings = vec![operands.a, operands.b, target];
        bindings.extend(&operands.extra);
        let grid = [x, y, (self.batch * splits) as u32];
        let sequence = cut.parts / splits;
        for part in 0..sequence {
            let immediates = Immediates::new().u32(self.m).u32(self.n).u32(self.k).u32(self.lda).u32(self.ldb).u32(ldc);
            let immediates = immediates.u32(self.stride_a).u32(self.stride_b).u32(stride_c);
            let immediates = match part {
                0 if splits > 1 => immediates.u32(0u32).f32(1.0),
                0 => immediates.store(store).f32(self.alpha),
                _ => immediates.store(Store::Add).f32(self.alpha),
            };
            let immediates = immediates.u32(tiles_m).u32(tiles_n).u32(BAND).u32(x);
            let immediates = immediates.u32(splits).u32(cut.size).u32(part * cut.size);
            let share = 1.0 / sequence as f64;
            let cost = Cost { flops: self.cost().flops * share, bytes: self.cost().bytes * share };
            program.launches.push(Launch::new(kernel.clone(), &bindings, immediates, grid, cost));
        }
        if splits > 1 {
            self.sum_parts(operands.c, store, splits, slot, limit, program);
        }
        Ok(())
    }

    fn sum_parts(&self, c: Bind, store: Store, splits: usize, slot: usize, limit: u32, program: &mut Program) {
        const THREADS: usize = 64;
        let elements = self.m * self.n;
        program.scratch.resize(program.scratch.len().max(slot + 1), 0);
        let held = 4 * splits * self.batch * elements;
        program.scratch[slot] = program.scratch[slot].max(held as u64);
        let vector = Self::vector(self.n, self.ldc, self.stride_c, self.batch);
        let kernel =
            KernelKey::new("gemm_splitk.wgsl", "main").with("TC", self.c.wgsl()).with("VC", vector).with("WG", THREADS);
        let [x, y, _] = fold_grid((elements / vector as usize).div_ceil(THREADS), limit);
        let immediates = Immediates::new().u32(self.m).u32(self.n).u32(self.ldc).u32(self.stride_c).u32(splits);
        let immediates = immediates.store(store).f32(self.alpha).u32(x);
        let bytes = (held + elements * self.batch * self.c.bytes() as usize) as f64;
        let cost = Cost { flops: (splits * elements * self.batch) as f64, bytes };
        program.launches.push(Launch::new(
            kernel,
            &[Bind::Scratch(slot), c],
            immediates,
            [x, y, self.batch as u32],
            cost,
        ));
    }
}

/// Parts of K of `size` each: side by side, with a second kernel that adds them up, or one launch after the other, each
/// adding to C.
struct Cut {
    parts: usize,
    size: usize,
    side_by_side: bool,
}

/// Rows of tiles walked together. Their share of A has to stay in a core's cache: 16 x 32 rows of 256 f32 are 512 kB.
const BAND: u32 = 16;
