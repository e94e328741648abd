//! What the losses share: the sum of weights, the row pass, statistics, and their references.

use super::rows::{EXP_ERROR, Lanes, sum_bound};
use super::*;
use crate::gpu::{Caps, KernelKey};

/// In place of an eps: the loss is a sum and is not divided at all. For micro-batches: where the host has divided the
/// weights by their sum over the big batch, the micro-batches add up to its loss and gradients exactly.
pub const SUM: f32 = -1.0;

/// What a weighted sum of losses is divided by.
pub(super) fn divisor(weights: f64, eps: f32) -> f64 {
    if eps < 0.0 { 1.0 } else { (weights + f64::from(eps)).max(1e-30) }
}

/// A label without weight.
pub const IGNORE: u32 = u32::MAX;

/// What a statistics output holds, each weighted: loss, weights, mean loss, right, called positive, rightly called
/// positive, positive, nothing.
pub const STATISTICS: usize = 8;

const THREADS: usize = 256;

/// Rows or quads that one workgroup of the statistics kernels takes.
const PER: usize = 4;

fn kernel(form: &'static str) -> KernelKey {
    KernelKey::new("losses.wgsl", form).with("FORM", form).with("WG", THREADS)
}

/// (sum of weights, loss_weight / (sum + eps)) to `to`; from labels a weight is 1, or 0 for [`IGNORE`].
pub(super) fn weight_sum(from: Bind, labels: bool, n: usize, [loss_weight, eps]: [f32; 2], to: Bind) -> Launch {
    let immediates = Immediates::new().u32(n).f32(loss_weight).f32(eps);
    let cost = Cost { flops: n as f64, bytes: 4.0 * n as f64 };
    Launch::new(kernel("weight_sum").with("LABELS", labels), &[from, to], immediates, [1, 1, 1], cost)
}

/// Workgroups of the binary loss over `n` elements, and of [`row_statistics`] over `n` rows.
pub(super) fn groups(n: usize, binary: bool) -> usize {
    n.div_ceil(THREADS * PER * if binary { 4 } else { 1 })
}

/// Partial statistics of the binary loss and its gradient.
pub(super) fn binary(bindings: [Bind; 6], spec: &Spec) -> Launch {
    let n = spec.elements();
    let key = kernel("bce").with("PER", PER).with("T", spec.dtype.wgsl()).with("STEP_BINDING", 6u32);
    let cost = Cost { flops: 20.0 * n as f64, bytes: 2.0 * spec.bytes() as f64 + 8.0 * n as f64 };
    let grid = [groups(n, true) as u32, 1, 1];
    Launch::new(key, &[&bindings[..], &[Bind::Step]].concat(), Immediates::new().u32(n), grid, cost)
}

/// Partial statistics of rows: from loss, best, labels, (weights) to `partial`.
pub(super) fn row_statistics([loss, best, labels, partial]: [Bind; 4], weights: Option<Bind>, n: usize) -> Launch {
    let key = kernel("rows").with("PER", PER).with("WEIGHTED", weights.is_some());
    let bindings: Vec<Bind> = [loss, best, labels, partial].into_iter().chain(weights).collect();
    let cost = Cost { flops: 4.0 * n as f64, bytes: 16.0 * n as f64 };
    Launch::new(key, &bindings, Immediates::new().u32(n), [groups(n, false) as u32, 1, 1], cost)
}

/// Statistics and loss from the partial ones.
pub(super) fn finish(partial: Bind, groups: usize, [loss_weight, eps]: [f32; 2], stats: Bind, loss: Bind) -> Launch {
    let immediates = Immediates::new().u32(groups).f32(loss_weight).f32(eps);
    let cost = Cost { flops: 8.0 * groups as f64, bytes: 32.0 * groups as f64 };
    Launch::new(kernel("finish"), &[partial, stats, loss], immediates, [1, 1, 1], cost)
}

/// How the row pass draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub site: u32,
    pub temperature: f32,
    /// Takes 1000 off the label's logit: a draw that is never right.
    pub never_right: bool,
}

/// The row pass over `rows` rows of logits that start at row `first` of all.
#[derive(Clone, Debug)]
pub(super) struct RowPass {
    pub dtype: DType,
    pub width: usize,
    pub rows: usize,
    pub first: usize,
    pub bias: Option<Bind>,
    pub weights: Option<Bind>,
    pub draw: Option<(Draw, Bind)>,
    /// No gradient, one in the logits' place, or one of its own.
    pub gradient: Gradient,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gradient {
    None,
    InPlace,
    To(Bind),
}

impl RowPass {
    /// Bindings: logits, labels, denominator, loss, best.
    pub fn launch(&self, bindings: [Bind; 5], lanes: Lanes, caps: &Caps) -> Launch {
        let mut bindings = bindings.to_vec();
        bindings.extend(self.bias);
        bindings.extend(self.weights);
        bindings.extend(self.draw.map(|d| d.1));
        if let Gradient::To(bind) = self.gradient {
            bindings.push(bind);
        }
        let mut key = KernelKey::new("cross_entropy.wgsl", "cross_entropy")
            .with("T", self.dtype.wgsl())
            .with("VEC", rows::vector(self.width))
            .with("UNROLL", 4u32)
            .with("BIAS", self.bias.is_some())
            .with("WEIGHTED", self.weights.is_some())
            .with("SAMPLE", self.draw.is_some())
            .with("GRAD", self.gradient != Gradient::None)
            .with("INPLACE", self.gradient == Gradient::InPlace);
        if self.draw.is_some() || self.gradient != Gradient::None {
            key = key.with("STEP_BINDING", bindings.len());
            bindings.push(Bind::Step);
        }
        if self.gradient == Gradient::None {
            // The denominator scales gradients only.
            bindings.remove(2);
        }
        let draw = self.draw.map_or(Draw { site: 0, temperature: 1.0, never_right: false }, |d| d.0);
        let immediates = Immediates::new().u32(self.rows).u32(self.width).u32(self.width).u32(self.first);
        let immediates = immediates.u32(draw.site).f32(1.0 / draw.temperature);
        let immediates = immediates.f32(if draw.never_right { 1000.0 } else { 0.0 });
        let n = (self.rows * self.width) as f64;
        let tensors = if self.gradient == Gradient::None { 1.0 } else { 2.0 };
        let flops = n * if self.draw.is_some() { 60.0 } else { 20.0 };
        let cost = Cost { flops, bytes: tensors * n * self.dtype.bytes() as f64 };
        Launch::new(lanes.key(key), &bindings, immediates, lanes.grid(self.rows, caps), cost)
    }
}

/// log of the sum of exp of a row.
pub(super) fn log_sum_exp(row: &[f64]) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}

/// The first of the largest.
pub(super) fn first_best(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

/// Loss of a row, and the error that f32 makes of it when its logits are known to `slack`: the driver's exp and log
/// (2.6e-7 absolute near 1, 4e-6 relative at most), rounding of lse and the difference, the sum.
pub(super) fn row_loss(row: &[f64], label: usize, slack: f64) -> (f64, f64) {
    let lse = log_sum_exp(row);
    let n = row.len();
    let error = 2.0 * slack
        + EXP_ERROR
        + 1e-6 * (1.0 + (n as f64).ln())
        + sum_bound(n, 1.0)
        + 4.0 * EPS * (lse.abs() + row[label].abs() + 20.0);
    (lse - row[label], error)
}

/// Statistics and loss of rows from their (loss, weight, right).
pub(super) fn row_totals(rows: &[(f64, f64, bool)], [loss_weight, eps]: [f32; 2]) -> (Vec<f64>, Vec<f64>) {
    let sum = |f: &dyn Fn(&(f64, f64, bool)) -> f64| rows.iter().map(f).sum::<f64>();
    let (loss, weight) = (sum(&|r| if r.1 == 0.0 { 0.0 } else { r.0 * r.1 }), sum(&|r| r.1));
    let mean = loss / divisor(weight, eps);
    let right = sum(&|r| if r.2 { r.1 } else { 0.0 });
    (vec![f64::from(loss_weight) * mean], vec![loss, weight, mean, right, 0.0, 0.0, 0.0, 0.0])
}

/// What a row's gradient is multiplied by, without its own weight: loss_weight * loss_scale / (sum of weights + eps).
pub(super) fn gradient_scale(weights: f64, [loss_weight, eps]: [f32; 2], loss_scale: f32) -> f64 {
    f64::from(loss_weight) * f64::from(loss_scale) / divisor(weights, eps)
}
