//! Layer normalisation over the last axis, alone or as `layer_norm(residual + dropout(inp))`, and its gradient.

use super::random::DropRate;
use super::rows::{self, Lanes, sum_bound, worst_by};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// Pieces of a row that an invocation may hold in registers.
const HELD: usize = 64;

/// Widest row: the portable kernel's lanes hold so much, one element a piece.
const WIDEST: usize = HELD * 256;

/// Inputs inp, (residual,) gamma, beta; outputs out, and for backward stats [rows, 2] = (mean, rstd) and the sum that
/// was normalised (with a residual).
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub eps: f32,
    pub residual: bool,
    /// Dropout of inp, with its site; only with a residual.
    pub drop: Option<(DropRate, u32)>,
    /// Whether a backward follows.
    pub save: bool,
}

/// Inputs dout, sum, stats, gamma; outputs dsum (= dresidual), dgamma, dbeta, and with dropout dinp.
#[derive(Clone, Debug)]
pub struct LayerNormBwd {
    pub drop: Option<(DropRate, u32)>,
}

/// gamma * (x - mean) / sqrt(variance + eps) + beta.
pub fn layer_norm(r: &mut dyn Recorder, x: Var, gamma: Var, beta: Var, eps: f32) -> Result<Var> {
    let op = LayerNorm { eps, residual: false, drop: None, save: r.training() };
    r.apply1(op, &[x, gamma, beta])
}

/// layer_norm(residual + dropout(x)); no dropout where nothing is trained.
pub fn residual_layer_norm(
    r: &mut dyn Recorder,
    [x, residual]: [Var; 2],
    [gamma, beta]: [Var; 2],
    eps: f32,
    drop: Option<DropRate>,
) -> Result<Var> {
    let drop = drop.filter(|rate| r.training() && rate.threshold > 0).map(|rate| (rate, r.site()));
    let op = LayerNorm { eps, residual: true, drop, save: r.training() };
    r.apply1(op, &[x, residual, gamma, beta])
}

fn variants(width: usize, caps: &Caps) -> Vec<Variant> {
    let pieces = width / rows::vector(width);
    let mut variants = rows::row_variants(caps, false);
    variants.retain(|v| pieces.div_ceil(Lanes::of(v).lanes as usize) <= HELD);
    if variants.is_empty() {
        variants.push(Variant::new("workgroup", &[0, 256, 1]));
    }
    variants
}

/// Rows one after another in a slot: setting up costs a CPU about as much as a row, and every slot of the backward
/// leaves a row of partial sums.
fn group(rows: usize, backward: bool, caps: &Caps) -> usize {
    match (caps.is_cpu(), backward) {
        (true, _) => (rows / 64).clamp(1, 16),
        (false, true) => (rows / 512).max(8),
        (false, false) => (rows / 4096).clamp(1, 4),
    }
}

fn kernel(entry: &'static str, pass: &'static str, spec: &Spec, lanes: Lanes, drop: bool) -> KernelKey {
    let vec = rows::vector(spec.width());
    let pieces = spec.width() / vec;
    let key = KernelKey::new("layer_norm.wgsl", entry)
        .with("PASS", pass)
        .with("T", spec.dtype.wgsl())
        .with("VEC", vec)
        .with("HELD", pieces.div_ceil(lanes.lanes as usize))
        .with("FULL", pieces.is_multiple_of(lanes.lanes as usize))
        .with("DROPOUT", drop);
    lanes.key(key)
}

fn immediates(spec: &Spec, group: usize, eps: f32, drop: Option<(DropRate, u32)>) -> Immediates {
    let (rate, site) = drop.unwrap_or((DropRate { threshold: 0, scale: 1.0 }, 0));
    let sizes = Immediates::new().u32(spec.rows()).u32(spec.width()).u32(group).f32(eps);
    sizes.u32(site).u32(rate.threshold).f32(rate.scale)
}

/// (mean, rstd) of a row.
fn moments(row: &[f64], eps: f64) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

impl LayerNorm {
    /// What is normalised.
    fn sum(&self, ins: &[&Host], step: &Step) -> Vec<f64> {
        if !self.residual {
            return ins[0].data.clone();
        }
        let factor = |i: usize| self.drop.map_or(1.0, |(rate, site)| rate.factor(step, site, i as u64));
        ins[0].data.iter().zip(&ins[1].data).enumerate().map(|(i, (x, y))| y + x * factor(i)).collect()
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        if self.residual { "residual_layer_norm" } else { "layer_norm" }
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 3 + usize::from(self.residual))?;
        let width = ins[0].width();
        let vectors = &ins[ins.len() - 2..];
        if ins[0].dtype == DType::U32 || ins[0].elements() == 0 || vectors.iter().any(|s| *s != Spec::f32(&[width])) {
            return Err(shape_error(self.name(), ins, format!("a float tensor and f32 vectors of {width} expected")));
        }
        if self.residual && ins[1] != ins[0] {
            return Err(shape_error(self.name(), ins, "a residual of the input's shape and type expected"));
        }
        if width > WIDEST {
            return Err(shape_error(self.name(), ins, format!("rows wider than {WIDEST} are not supported")));
        }
        let mut outs = vec![ins[0].clone()];
        if self.save {
            outs.push(Spec::f32(&[ins[0].rows(), 2]));
            outs.extend(self.residual.then(|| ins[0].clone()));
        }
        Ok(outs)
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        variants(io.ins[0].width(), caps)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let lanes = Lanes::of(variant);
        let group = group(spec.rows(), false, caps);
        let mut key = kernel("layer_norm_fwd", "fwd", spec, lanes, self.drop.is_some());
        key = key.with("RESIDUAL", self.residual).with("SAVE", self.save);
        let mut bindings: Vec<Bind> =
            (0..io.ins.len()).map(Bind::In).chain((0..io.outs.len()).map(Bind::Out)).collect();
        if self.drop.is_some() {
            key = key.with("STEP_BINDING", bindings.len());
            bindings.push(Bind::Step);
        }
        let n = spec.elements() as f64;
        let tensors = 2.0 + f64::from(u8::from(self.residual)) * (1.0 + f64::from(u8::from(self.save)));
        let cost = Cost { flops: 9.0 * n, bytes: tensors * spec.bytes() as f64 };
        let grid = lanes.grid(spec.rows().div_ceil(group), caps);
        Ok(Launch::new(key, &bindings, immediates(spec, group, self.eps, self.drop).u32(0u32), grid, cost).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        let Some(dout) = b.dout(0) else {
            return Ok(Backward::Stop("mean and deviation are for its own backward"));
        };
        let first = usize::from(self.residual);
        let (normalised, gamma) = (if self.residual { b.output(2) } else { b.input(0) }, b.input(1 + first));
        let ins = [dout, normalised, b.output(1), gamma];
        let op = LayerNormBwd { drop: self.drop };
        match (self.residual, self.drop) {
            (true, Some(_)) => {
                b.record(op, &ins, &[(0, 1), (1, 2), (2, 3), (3, 0)])?;
            }
            (true, None) => {
                let dsum = b.record(op, &ins, &[(1, 2), (2, 3)])?[0];
                b.pass(0, dsum)?;
                b.pass(1, dsum)?;
            }
            (false, _) => {
                b.record(op, &ins, &[(0, 0), (1, 1), (2, 2)])?;
            }
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let width = io.ins[0].width();
        let (gamma, beta) = (&ins[ins.len() - 2].data, &ins[ins.len() - 1].data);
        let sum = self.sum(ins, step);
        let (mut out, mut stats) = (Vec::with_capacity(sum.len()), Vec::new());
        for row in sum.chunks(width) {
            let (mean, rstd) = moments(row, f64::from(self.eps));
            out.extend(row.iter().enumerate().map(|(c, x)| (x - mean) * rstd * gamma[c] + beta[c]));
            stats.extend([mean, rstd]);
        }
        [out, stats, sum].into_iter().take(io.outs.len()).collect()
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width())
    }

    // With s known to e (its storage where it is a sum made here, nothing where it is an input): s - mean is known to
    // e + e_max + a few roundings of the deviations, their squares' sum makes rstd known relatively to the same over
    // the standard deviation, and all of it is multiplied by rstd * gamma.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let spec = &io.ins[0];
        let width = spec.width();
        let gamma = &ins[ins.len() - 2].data;
        let sum = self.sum(ins, step);
        let stored = if self.residual { spec.dtype.epsilon() + 2.0 * EPS } else { 0.0 };
        let rows: Vec<(f64, f64, f64)> = sum
            .chunks(width)
            .map(|row| {
                let (mean, rstd) = moments(row, f64::from(self.eps));
                let largest = row.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                let deviation = row.iter().fold(0.0f64, |m, x| m.max((x - mean).abs()));
                let error = stored * largest + sum_bound(width, deviation) / (width as f64).sqrt();
                (deviation, rstd, error)
            })
            .collect();
        let bound = |i: usize| {
            // The statistics have a row of two elements, the others rows as wide as the input.
            let (deviation, rstd, error) = rows[i / if k == 1 { 2 } else { width }];
            let relative = 2.0 * rstd * error + 8.0 * EPS;
            match k {
                0 => {
                    let xhat = deviation * rstd;
                    gamma[i % width].abs() * (rstd * error + xhat * relative)
                        + 4.0 * EPS * want[i].abs()
                        + 2.0 * EPS * gamma[i % width].abs() * xhat
                }
                1 if i.is_multiple_of(2) => 2.0 * error + 2.0 * EPS * want[i].abs(),
                1 => want[i] * relative,
                _ => stored * (want[i].abs() + 1e-30) + EPS * (ins[0].data[i].abs() * 4.0 + ins[1].data[i].abs()),
            }
        };
        worst_by(bound, &io.outs[k], got, want)
    }
}

impl Op for LayerNormBwd {
    fn name(&self) -> &'static str {
        if self.drop.is_some() { "dropout_layer_norm_bwd" } else { "layer_norm_bwd" }
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 4)?;
        let gamma = ins[3].clone();
        let mut outs = vec![ins[1].clone(), gamma.clone(), gamma];
        outs.extend(self.drop.map(|_| ins[1].clone()));
        Ok(outs)
    }

    fn accumulates(&self, k: usize) -> bool {
        k < 3
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        variants(io.ins[0].width(), caps)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let (count, width) = (spec.rows(), spec.width());
        let lanes = Lanes::of(variant);
        let group = group(count, true, caps);
        let slots = count.div_ceil(group);
        let mut key = kernel("layer_norm_bwd", "bwd", spec, lanes, self.drop.is_some());
        let mut bindings: Vec<Bind> = (0..4).map(Bind::In).collect();
        bindings.extend([Bind::Out(0), Bind::Scratch(0)]);
        if self.drop.is_some() {
            bindings.push(Bind::Out(3));
            key = key.with("STEP_BINDING", bindings.len());
            bindings.push(Bind::Step);
        }
        let partial = (slots * 2 * width * 4) as u64;
        let tensors = if self.drop.is_some() { 4.0 } else { 3.0 };
        let cost = Cost { flops: 16.0 * spec.elements() as f64, bytes: tensors * spec.bytes() as f64 + partial as f64 };
        let immediates = immediates(spec, group, 0.0, self.drop).accumulate(0);
        let mut program = Program { launches: Vec::new(), scratch: vec![partial] };
        program.launches.push(Launch::new(key, &bindings, immediates, lanes.grid(slots, caps), cost));
        for k in [1, 2] {
            let (from, to) = ((Bind::Scratch(0), DType::F32), Bind::Out(k));
            let sizes = [slots, width, 2 * width, (k - 1) * width];
            program.launches.push(reduce::column_launch(from, sizes, to, Store::Output(k)));
        }
        Ok(program)
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(rows::NO_SECOND_ORDER)
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let width = io.ins[0].width();
        let (mut dgamma, mut dbeta) = (vec![0.0; width], vec![0.0; width]);
        let mut dsum = Vec::with_capacity(ins[0].data.len());
        self.rows(ins, |row| {
            for c in 0..width {
                dgamma[c] += row.dout[c] * row.xhat[c];
                dbeta[c] += row.dout[c];
                dsum.push(row.rstd * (row.g[c] - row.mean_g - row.xhat[c] * row.mean_gx));
            }
        });
        let mut outs = vec![dsum, dgamma, dbeta];
        if let Some((rate, site)) = self.drop {
            outs.push(outs[0].iter().enumerate().map(|(i, d)| d * rate.factor(step, site, i as u64)).collect());
        }
        outs
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width() + io.ins[0].rows())
    }

    // Each of the three terms of dsum by its own size, the two means as sums of `width` terms; the parameters' gradients
    // as sums over the rows, of terms known to a few roundings.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let (count, width) = (io.ins[0].rows(), io.ins[0].width());
        let mut columns = vec![0.0; width];
        let mut bounds = Vec::with_capacity(ins[0].data.len());
        let scale = f64::from(self.drop.map_or(1.0, |d| d.0.scale));
        self.rows(ins, |row| {
            let sizes = |f: &dyn Fn(usize) -> f64| (0..width).map(f).sum::<f64>() / width as f64;
            let g = sum_bound(width, sizes(&|c| row.g[c].abs()));
            let gx = sum_bound(width, sizes(&|c| (row.g[c] * row.xhat[c]).abs()));
            for (c, column) in columns.iter_mut().enumerate() {
                *column += if k == 1 { (row.dout[c] * row.xhat[c]).abs() } else { row.dout[c].abs() };
                let terms = row.g[c].abs() + row.mean_g.abs() + 2.0 * (row.xhat[c] * row.mean_gx).abs();
                bounds.push(
                    row.rstd * (8.0 * EPS * terms + g + row.xhat[c].abs() * gx) * if k == 3 { scale } else { 1.0 },
                );
            }
        });
        let bound = |i: usize| match k {
            1 | 2 => sum_bound(count, columns[i]) + 4.0 * EPS * columns[i] + EPS * want[i].abs(),
            _ => bounds[i] + EPS * want[i].abs(),
        };
        worst_by(bound, &io.outs[k], got, want)
    }
}

struct Row<'a> {
    dout: &'a [f64],
    xhat: Vec<f64>,
    g: Vec<f64>,
    rstd: f64,
    mean_g: f64,
    mean_gx: f64,
}

impl LayerNormBwd {
    fn rows(&self, ins: &[&Host], mut each: impl FnMut(Row<'_>)) {
        let (dout, sum, stats, gamma) = (ins[0], ins[1], ins[2], &ins[3].data);
        let width = gamma.len();
        for r in 0..sum.spec.rows() {
            let (mean, rstd) = (stats.data[2 * r], stats.data[2 * r + 1]);
            let xhat: Vec<f64> = sum.row(r).iter().map(|x| (x - mean) * rstd).collect();
            let g: Vec<f64> = dout.row(r).iter().zip(gamma).map(|(d, w)| d * w).collect();
            let mean_g = g.iter().sum::<f64>() / width as f64;
            let mean_gx = g.iter().zip(&xhat).map(|(g, x)| g * x).sum::<f64>() / width as f64;
            each(Row { dout: dout.row(r), xhat, g, rstd, mean_g, mean_gx });
        }
    }
}

fn inputs(r: &mut dyn CaseRecorder, rows: usize, width: usize, dtype: DType, x: Fill) -> [Var; 3] {
    let x = r.input(&[rows, width], dtype, x);
    let gamma = r.input(&[width], DType::F32, Fill::Normal(1.0));
    let beta = r.input(&[width], DType::F32, Fill::Normal(1.0));
    [x, gamma, beta]
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, width) in [(1usize, 1usize), (5, 12), (7, 17), (131, 36), (70, 256)] {
        cases.extend(Case::both(format!("layer_norm_{rows}x{width}"), move |r, dtype| {
            let [x, gamma, beta] = inputs(r, rows, width, dtype, Fill::Normal(2.0));
            let y = layer_norm(r, x, gamma, beta, 1e-12)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    for (rows, width, p) in [(1usize, 1usize, 0.1f32), (5, 12, 0.0), (7, 17, 0.1), (37, 64, 0.1), (3, 512, 0.1)] {
        cases.extend(Case::both(format!("layer_norm_residual_drop{p}_{rows}x{width}"), move |r, dtype| {
            let [x, gamma, beta] = inputs(r, rows, width, dtype, Fill::Normal(1.0));
            let residual = r.input(&[rows, width], dtype, Fill::Normal(1.0));
            // A width of 1 has no deviation: eps is all there is, and 1e-12 makes gradients of 1e6 of rounding.
            let eps = if width == 1 { 1.0 } else { 1e-12 };
            let y = residual_layer_norm(r, [x, residual], [gamma, beta], eps, Some(DropRate::new(p)))?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    // A mean far from zero: naive variances lose everything here.
    cases.push(Case::new("layer_norm_of_rows_near_1000", |r| {
        let [x, gamma, beta] = inputs(r, 21, 260, DType::F32, Fill::Uniform(1000.0, 1001.0));
        let y = layer_norm(r, x, gamma, beta, 1e-12)?;
        r.seed(y, Fill::Normal(1.0))
    }));
    // No deviation at all: the result is beta, exactly, although rstd is a million.
    cases.extend(Case::both("layer_norm_of_constant_rows", |r, dtype| {
        let [x, gamma, beta] = inputs(r, 9, 136, dtype, Fill::Const(1000.123));
        layer_norm(r, x, gamma, beta, 1e-12).map(|_| ())
    }));
    // The residual's gradient has another contribution already: this one is added.
    cases.push(Case::new("layer_norm_adds_to_the_residuals_gradient", |r| {
        let [x, gamma, beta] = inputs(r, 33, 48, DType::F32, Fill::Normal(1.0));
        let residual = r.input(&[33, 48], DType::F32, Fill::Normal(1.0));
        let y = residual_layer_norm(r, [x, residual], [gamma, beta], 1e-5, Some(DropRate::new(0.3)))?;
        let z = add::add(r, y, residual)?;
        r.seed(z, Fill::Normal(1.0))
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    [(1024usize, 64usize), (1024, 256), (1024, 768)]
        .map(|(rows, width)| {
            Case::new(format!("layer_norm_{rows}x{width}"), move |r| {
                let [x, gamma, beta] = inputs(r, rows, width, DType::F32, Fill::Normal(1.0));
                let residual = r.input(&[rows, width], DType::F32, Fill::Normal(1.0));
                let y = residual_layer_norm(r, [x, residual], [gamma, beta], 1e-12, Some(DropRate::new(0.1)))?;
                r.seed(y, Fill::Normal(1.0))
            })
        })
        .into()
}
