//! Softmax over the last axis and its gradient.

use super::rows::{self, EXP_ERROR, Lanes, sum_bound, worst_by};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// out = softmax(inp).
#[derive(Clone, Debug)]
pub struct Softmax;

/// Inputs out, dout; output dinp.
#[derive(Clone, Debug)]
pub struct SoftmaxBwd;

/// softmax(x) over the last axis.
pub fn softmax(r: &mut dyn Recorder, x: Var) -> Result<Var> {
    r.apply1(Softmax, &[x])
}

fn launch(
    entry: &'static str,
    pass: &'static str,
    bindings: &[Bind],
    spec: &Spec,
    variant: &Variant,
    caps: &Caps,
) -> Launch {
    let lanes = Lanes::of(variant);
    let key = KernelKey::new("softmax.wgsl", entry).with("PASS", pass).with("T", spec.dtype.wgsl());
    let key = lanes.key(key.with("VEC", rows::vector(spec.width())));
    let immediates = Immediates::new().u32(spec.rows()).u32(spec.width());
    let immediates = if pass == "bwd" { immediates.accumulate(0) } else { immediates.u32(0u32) };
    let cost = Cost { flops: 6.0 * spec.elements() as f64, bytes: bindings.len() as f64 * spec.bytes() as f64 };
    Launch::new(key, bindings, immediates, lanes.grid(spec.rows(), caps), cost)
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 1)?;
        if ins[0].dtype == DType::U32 || ins[0].elements() == 0 {
            return Err(shape_error(self.name(), ins, "a float tensor expected"));
        }
        Ok(vec![ins[0].clone()])
    }

    fn variants(&self, _io: &Io, caps: &Caps) -> Vec<Variant> {
        rows::row_variants(caps, false)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(launch("softmax_fwd", "fwd", &[Bind::In(0), Bind::Out(0)], &io.ins[0], variant, caps).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            let out = b.output(0);
            b.record(SoftmaxBwd, &[out, dout], &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let mut out = Vec::with_capacity(ins[0].data.len());
        for row in ins[0].data.chunks(ins[0].spec.width()) {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = row.iter().map(|x| (x - top).exp()).sum();
            out.extend(row.iter().map(|x| (x - top).exp() / total));
        }
        vec![out]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width())
    }

    // exp of x - max, which is rounded once; numerator and sum have passed through up to three of them.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let width = io.ins[0].width();
        let tops: Vec<f64> =
            ins[0].data.chunks(width).map(|row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max)).collect();
        let bound = |i: usize| {
            let argument = (ins[0].data[i] - tops[i / width]).abs();
            want[i] * (4.0 * EXP_ERROR + 4.0 * EPS * argument.min(200.0) + sum_bound(width, 1.0))
        };
        worst_by(bound, &io.outs[k], got, want)
    }
}

impl Op for SoftmaxBwd {
    fn name(&self) -> &'static str {
        "softmax_bwd"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 2)?;
        Ok(vec![ins[0].clone()])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, caps: &Caps) -> Vec<Variant> {
        rows::row_variants(caps, false)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(launch("softmax_bwd", "bwd", &[Bind::In(0), Bind::In(1), Bind::Out(0)], &io.ins[0], variant, caps).into())
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(rows::NO_SECOND_ORDER)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let mut dinp = Vec::with_capacity(ins[0].data.len());
        for r in 0..ins[0].spec.rows() {
            let (out, dout) = (ins[0].row(r), ins[1].row(r));
            let dot: f64 = out.iter().zip(dout).map(|(a, b)| a * b).sum();
            dinp.extend(out.iter().zip(dout).map(|(y, d)| y * (d - dot)));
        }
        vec![dinp]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width())
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let width = io.ins[0].width();
        let dots: Vec<f64> = (0..io.ins[0].rows())
            .map(|r| ins[0].row(r).iter().zip(ins[1].row(r)).map(|(a, b)| (a * b).abs()).sum())
            .collect();
        let bound = |i: usize| {
            let (y, dot) = (ins[0].data[i], dots[i / width]);
            y * (sum_bound(width, dot) + 4.0 * EPS * (ins[1].data[i].abs() + dot)) + EPS * want[i].abs()
        };
        worst_by(bound, &io.outs[k], got, want)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, width) in [(1usize, 1usize), (5, 7), (13, 64), (9, 257), (33, 512), (2, 5000)] {
        cases.extend(Case::both(format!("softmax_{rows}x{width}"), move |r, dtype| {
            let x = r.input(&[rows, width], dtype, Fill::Normal(4.0));
            let y = softmax(r, x)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    cases.push(Case::new("softmax_of_huge_values", |r| {
        let x = r.input(&[3, 8], DType::F32, Fill::Values(vec![1e30, -1e30, 1e30, 3e37, 3e37, -3e37, 0.0, 1.0]));
        softmax(r, x).map(|_| ())
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("softmax_4096x128", |r| {
        let x = r.input(&[4096, 128], DType::F32, Fill::Normal(1.0));
        let y = softmax(r, x)?;
        r.seed(y, Fill::Normal(1.0))
    })]
}
