//! What the families that work on rows and on single elements share: variants, grids, bounds.

use super::*;
use crate::gpu::{Caps, KernelKey};

/// Error of the drivers' exp, relative; up to 1e-6 was seen.
pub(super) const EXP_ERROR: f64 = 2e-6;

/// Who works on a row: `lanes` invocations, `rows` rows side by side in a workgroup.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    /// 1: the lanes are a subgroup. 0: they are the workgroup and share its memory.
    subgroup: u32,
    pub lanes: u32,
    rows: u32,
}

impl Lanes {
    pub fn of(variant: &Variant) -> Lanes {
        match *variant.args {
            [subgroup, lanes, rows] => Lanes { subgroup, lanes, rows },
            _ => Lanes { subgroup: 0, lanes: 64, rows: 1 },
        }
    }

    pub fn key(self, key: KernelKey) -> KernelKey {
        key.with("SUBGROUP", self.subgroup).with("LANES", self.lanes).with("ROWS", self.rows)
    }

    /// The grid for `slots` rows (or runs of rows).
    pub fn grid(self, slots: usize, caps: &Caps) -> [u32; 3] {
        fold_grid(slots.div_ceil(self.rows as usize), caps.limits.workgroups_per_dimension)
    }
}

/// Ways to work on rows. Subgroups first, several to a workgroup on a GPU, one where a CPU runs the workgroup; `long`
/// rows (vocabularies) are a whole workgroup's work on a GPU.
pub(super) fn row_variants(caps: &Caps, long: bool) -> Vec<Variant> {
    let workgroup = Variant::new("workgroup", &[0, if long { 256 } else { 64 }, 1]);
    let subgroup = |rows: u32| {
        let lanes = caps.fixed_subgroup().filter(|lanes| lanes.is_power_of_two() && *lanes >= 4)?;
        (lanes * rows <= caps.limits.workgroup_invocations)
            .then(|| Variant::new(format!("subgroup/{rows}"), &[1, lanes, rows]))
    };
    let mut variants: Vec<Variant> = match (caps.is_cpu(), long) {
        (true, _) => [subgroup(1), subgroup(4)].into_iter().flatten().collect(),
        (false, _) => [subgroup(4), subgroup(1)].into_iter().flatten().collect(),
    };
    let place = if long && !caps.is_cpu() { 0 } else { variants.len() };
    variants.insert(place, workgroup);
    variants
}

/// Elements moved at once along rows of this width.
pub(super) fn vector(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

const THREADS: usize = 256;

/// Threads and pieces a thread for elementwise kernels: a CPU driver pays for every workgroup, a GPU wants many.
fn per_thread(caps: &Caps) -> usize {
    if caps.is_cpu() { 4 } else { 1 }
}

/// Adds the constants WG and PER to an elementwise kernel.
pub(super) fn element_key(key: KernelKey, caps: &Caps) -> KernelKey {
    key.with("WG", THREADS).with("PER", per_thread(caps))
}

/// The grid of an elementwise kernel over `pieces` vectors.
pub(super) fn element_grid(pieces: usize, caps: &Caps) -> [u32; 3] {
    fold_grid(pieces.div_ceil(THREADS * per_thread(caps)), caps.limits.workgroups_per_dimension)
}

/// Writes `value` to a whole output.
pub(super) fn fill(to: Bind, spec: &Spec, value: f32, caps: &Caps) -> Launch {
    let quads = spec.elements().div_ceil(4);
    let kernel =
        KernelKey::new("elementwise.wgsl", "elementwise_fill").with("FORM", "fill").with("TO", spec.dtype.wgsl());
    let cost = Cost { flops: 0.0, bytes: spec.bytes() as f64 };
    let immediates = Immediates::new().u32(quads).f32(value);
    Launch::new(element_key(kernel, caps), &[to], immediates, element_grid(quads, caps), cost)
}

/// Bound on the error of a sum of `n` terms whose magnitudes add up to `magnitude`: see [`Tolerance::sum`].
pub(super) fn sum_bound(n: usize, magnitude: f64) -> f64 {
    8.0 * (n.max(1) as f64).sqrt() * EPS * magnitude
}

/// Worst |got - want| / bound, each element by its own bound.
pub(super) fn worst_by(bound: impl Fn(usize) -> f64, spec: &Spec, got: &[f64], want: &[f64]) -> f64 {
    let ratio = |i: usize| worst_ratio(Tolerance::EXACT.plus_abs(bound(i)), spec, &got[i..=i], &want[i..=i]);
    (0..want.len().min(got.len())).map(ratio).fold(0.0, |worst, r| if r.is_nan() { r } else { worst.max(r) })
}

/// Whether each chosen id's score is the best of its row within `slack(row)`: worst shortfall / slack.
pub(super) fn worst_choice(
    got: &[f64],
    score: impl Fn(usize) -> Vec<f64>,
    slack: impl Fn(usize, &[f64]) -> f64,
) -> f64 {
    let ratio = |row: usize| {
        let scores = score(row);
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let Some(chosen) = scores.get(got[row] as usize) else { return f64::INFINITY };
        let short = best - chosen;
        if short == 0.0 { 0.0 } else { short / slack(row, &scores) }
    };
    (0..got.len()).map(ratio).fold(0.0, f64::max)
}

pub(super) const NO_SECOND_ORDER: Backward = Backward::Stop("gradients of gradients are not taken");
