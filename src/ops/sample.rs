//! Draws from the softmax of a row by the Gumbel trick, and the best id of a row.

use super::losses::{Draw, first_best};
use super::random::random4;
use super::rows::{self, Lanes, worst_choice};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// Ids [rows] drawn from softmax(logits / temperature), or without `draw` the best ones. Inputs logits [rows, V] and, for
/// draws that are never right, labels.
#[derive(Clone, Debug)]
pub struct Sample {
    pub draw: Option<Draw>,
}

/// An id for each row of `logits`, drawn.
pub fn sample(r: &mut dyn Recorder, logits: Var, temperature: f32) -> Result<Var> {
    let site = r.site();
    r.apply1(Sample { draw: Some(Draw { site, temperature, never_right: false }) }, &[logits])
}

/// The best id of each row of `logits`; of equal ones the lowest.
pub fn argmax(r: &mut dyn Recorder, logits: Var) -> Result<Var> {
    r.apply1(Sample { draw: None }, &[logits])
}

/// Gumbel noise of element `c` of row `row` of rows of `width`: what `shaders/shared/gumbel.wgsl` computes.
pub(super) fn gumbel(step: &Step, site: u32, row: usize, width: usize, c: usize) -> f64 {
    let quad = row * width.div_ceil(4) + c / 4;
    let u = f64::from(random4(step, site, quad as u32)[c % 4] >> 8) / 16_777_216.0;
    -(-(u + 1e-9).ln().min(0.0) + 1e-9).ln()
}

/// Scores of a row under `draw`.
pub(super) fn scores(step: &Step, draw: &Draw, row: usize, logits: &[f64], label: Option<usize>) -> Vec<f64> {
    let held = |c: usize| if draw.never_right && label == Some(c) { 1000.0 } else { 0.0 };
    let noise = |c: usize| gumbel(step, draw.site, row, logits.len(), c);
    logits.iter().enumerate().map(|(c, x)| (x - held(c)) / f64::from(draw.temperature) + noise(c)).collect()
}

/// How far below the best a drawn id's score may be: noise is known to 1e-5 (the inner logarithm relatively to 4e-6, the
/// outer one absolutely to 1e-6), on both sides, scores to a few roundings of the largest, logits to `slack`.
pub(super) fn draw_slack(draw: &Draw, scores: &[f64], slack: f64) -> f64 {
    let best = scores.iter().copied().fold(0.0f64, |m, x| m.max(x.abs().min(1e4)));
    2.0 * (1e-5 + 4.0 * EPS * best + slack / f64::from(draw.temperature))
}

impl Sample {
    fn scores(&self, ins: &[&Host], step: &Step, row: usize) -> Vec<f64> {
        let logits = ins[0].row(row);
        match &self.draw {
            Some(draw) => scores(step, draw, row, logits, ins.get(1).map(|l| l.index(row))),
            None => logits.to_vec(),
        }
    }
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        if self.draw.is_some() { "sample" } else { "argmax" }
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        let labels = self.draw.is_some_and(|d| d.never_right);
        expect_inputs(self.name(), ins, 1 + usize::from(labels))?;
        if ins[0].dtype == DType::U32 || ins[0].elements() == 0 || (labels && ins[1] != Spec::u32(&[ins[0].rows()])) {
            return Err(shape_error(self.name(), ins, "float logits (and a u32 label for each row) expected"));
        }
        Ok(vec![Spec::u32(&[ins[0].rows()])])
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        rows::row_variants(caps, io.ins[0].width() >= 2048)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let lanes = Lanes::of(variant);
        let draw = self.draw.unwrap_or(Draw { site: 0, temperature: 1.0, never_right: false });
        let mut bindings = vec![Bind::In(0), Bind::Out(0)];
        let mut key = KernelKey::new("sample.wgsl", "sample")
            .with("T", spec.dtype.wgsl())
            .with("VEC", rows::vector(spec.width()))
            .with("BIAS", false)
            .with("LABELS", draw.never_right)
            .with("NOISE", self.draw.is_some());
        bindings.extend(draw.never_right.then_some(Bind::In(1)));
        if self.draw.is_some() {
            key = key.with("STEP_BINDING", bindings.len());
            bindings.push(Bind::Step);
        }
        let immediates = Immediates::new().u32(spec.rows()).u32(spec.width()).u32(spec.width()).u32(0u32);
        let immediates = immediates.u32(draw.site).f32(1.0 / draw.temperature);
        let immediates = immediates.f32(if draw.never_right { 1000.0 } else { 0.0 });
        let cost = Cost { flops: 40.0 * spec.elements() as f64, bytes: spec.bytes() as f64 };
        Ok(Launch::new(lanes.key(key), &bindings, immediates, lanes.grid(spec.rows(), caps), cost).into())
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("an id has no gradient"))
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        vec![(0..io.ins[0].rows()).map(|r| first_best(&self.scores(ins, step, r)) as f64).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::EXACT
    }

    fn worst(&self, _k: usize, ins: &[&Host], _io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        match &self.draw {
            None if got == want => 0.0,
            None => f64::INFINITY,
            Some(draw) => worst_choice(got, |r| self.scores(ins, step, r), |_, scores| draw_slack(draw, scores, 0.0)),
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, width) in [(1usize, 1usize), (9, 7), (70, 64), (5, 1021), (3, 4096)] {
        cases.extend(Case::both(format!("sample_{rows}x{width}"), move |r, dtype| {
            let logits = r.input(&[rows, width], dtype, Fill::Normal(2.0));
            sample(r, logits, 0.7)?;
            argmax(r, logits).map(|_| ())
        }));
    }
    cases.push(Case::new("sample_never_right", |r| {
        let logits = r.input(&[50, 4], DType::F32, Fill::Normal(5.0));
        let labels = r.input(&[50], DType::U32, Fill::Ids(4));
        let draw = Some(Draw { site: r.site(), temperature: 1.0, never_right: true });
        r.record(Box::new(Sample { draw }), &[logits, labels], &[]).map(|_| ())
    }));
    // Ties take the lowest id, whatever lane met them.
    cases.push(Case::new("sample_argmax_of_ties", |r| {
        let logits = r.input(&[20, 100], DType::F32, Fill::Values(vec![0.0, 1.0, 1.0, -5.0, 1.0, 0.5, 0.25]));
        argmax(r, logits).map(|_| ())
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("sample_160x32000", |r| {
        let logits = r.input(&[160, 32_000], DType::F32, Fill::Normal(1.0));
        sample(r, logits, 1.0).map(|_| ())
    })]
}
