//! Weighted binary cross-entropy with logits: replaced-token detection. The gradient is made in the same pass.

use super::losses;
use super::rows::{EXP_ERROR, sum_bound, worst_by};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, Step};

/// loss = weight * sum(w l) / (sum(w) + eps). Inputs logits, targets u32 (0 or 1), weights f32, all of as many elements;
/// outputs loss [1], statistics [8], dlogits.
#[derive(Clone, Debug)]
pub struct BinaryCrossEntropy {
    pub weight: f32,
    /// Or [`losses::SUM`].
    pub eps: f32,
}

/// (loss, statistics); the gradient goes to `logits`.
pub fn binary_cross_entropy(r: &mut dyn Recorder, op: BinaryCrossEntropy, ins: [Var; 3]) -> Result<[Var; 2]> {
    let grads: &[(usize, Var)] = if r.needs_grad(ins[0]) { &[(2, ins[0])] } else { &[] };
    let outs = r.record(Box::new(op), &ins, grads)?;
    Ok([outs[0], outs[1]])
}

fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

impl BinaryCrossEntropy {
    /// Statistics in f64.
    fn statistics(&self, ins: &[&Host]) -> Vec<f64> {
        let mut s = vec![0.0; losses::STATISTICS];
        for ((&x, &t), &w) in ins[0].data.iter().zip(&ins[1].data).zip(&ins[2].data) {
            let (target, yes) = (t != 0.0, x > 0.0);
            s[0] += if w == 0.0 { 0.0 } else { w * softplus(if target { -x } else { x }) };
            s[1] += w;
            let mut count = |k: usize, when: bool| s[k] += if when { w } else { 0.0 };
            count(3, target == yes);
            count(4, yes);
            count(5, yes && target);
            count(6, target);
        }
        s[2] = s[0] / losses::divisor(s[1], self.eps);
        s
    }
}

impl Op for BinaryCrossEntropy {
    fn name(&self) -> &'static str {
        "binary_cross_entropy"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 3)?;
        let n = ins[0].elements();
        let fit = ins.iter().all(|s| s.elements() == n) && n > 0;
        if !fit || ins[0].dtype == DType::U32 || ins[1].dtype != DType::U32 || ins[2].dtype != DType::F32 {
            return Err(shape_error(
                self.name(),
                ins,
                "float logits, u32 targets and f32 weights of one size expected",
            ));
        }
        Ok(vec![Spec::f32(&[1]), Spec::f32(&[losses::STATISTICS]), ins[0].clone()])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("partials", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, _caps: &Caps) -> Result<Program> {
        let n = io.ins[0].elements();
        let scales = [self.weight, self.eps];
        let (denominator, partial) = (Bind::Scratch(0), Bind::Scratch(1));
        let groups = losses::groups(n, true);
        let launches = vec![
            losses::weight_sum(Bind::In(2), false, n, scales, denominator),
            losses::binary([Bind::In(0), Bind::In(1), Bind::In(2), denominator, Bind::Out(2), partial], &io.ins[0]),
            losses::finish(partial, groups, scales, Bind::Out(1), Bind::Out(0)),
        ];
        Ok(Program { launches, scratch: vec![8, 32 * groups as u64] })
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("a loss writes its gradient in the forward pass"))
    }

    fn reference(&self, ins: &[&Host], _io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let statistics = self.statistics(ins);
        let scale = losses::gradient_scale(statistics[1], [self.weight, self.eps], step.loss_scale);
        let slope = |i: usize| {
            let sign = if ins[1].data[i] != 0.0 { -1.0 } else { 1.0 };
            sign * ins[2].data[i] * scale / (1.0 + (-sign * ins[0].data[i]).exp())
        };
        vec![vec![f64::from(self.weight) * statistics[2]], statistics, (0..ins[0].data.len()).map(slope).collect()]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].elements())
    }

    // softplus: exp, one log (within 4e-6 of its value) or its series, three roundings; every term is positive, so sums
    // keep relative errors.
    fn worst(&self, k: usize, _ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let n = io.ins[0].elements();
        let bound = |i: usize| match (k, i) {
            (2, _) => want[i].abs() * (EXP_ERROR + 8.0 * EPS + sum_bound(n, 1.0)),
            (0, _) | (1, 0 | 2) => want[i].abs() * (EXP_ERROR + 4e-6 + 8.0 * EPS + 2.0 * sum_bound(n, 1.0)),
            _ => sum_bound(n, want[i].abs()),
        };
        worst_by(bound, &io.outs[k], got, want)
    }
}

fn case(r: &mut dyn CaseRecorder, n: usize, dtype: DType, logits: Fill) -> Result<()> {
    let logits = r.input(&[n], dtype, logits);
    let targets = r.input(&[n], DType::U32, Fill::Ids(2));
    let weights = r.input(&[n], DType::F32, Fill::Values(vec![1.0, 1.0, 0.0, 1.0, 0.5]));
    let op = BinaryCrossEntropy { weight: 50.0, eps: 1e-6 };
    binary_cross_entropy(r, op, [logits, targets, weights]).map(|_| ())
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [1usize, 7, 1000, 4099] {
        cases.extend(Case::both(format!("bce_{n}"), move |r, dtype| case(r, n, dtype, Fill::Normal(3.0))));
    }
    // Where exp of the logit overflows or vanishes.
    let edges = vec![80.0, -80.0, 0.0, 60000.0, -60000.0, 2.77, -2.77, 2.78];
    cases.push(Case::new("bce_of_large_logits", move |r| case(r, 53, DType::F32, Fill::Values(edges.clone()))));
    cases.push(Case::new("bce_without_any_weight", |r| {
        let logits = r.input(&[40], DType::F32, Fill::Normal(3.0));
        let targets = r.input(&[40], DType::U32, Fill::Ids(2));
        let weights = r.input(&[40], DType::F32, Fill::Const(0.0));
        let op = BinaryCrossEntropy { weight: 50.0, eps: 1e-6 };
        binary_cross_entropy(r, op, [logits, targets, weights]).map(|_| ())
    }));
    cases.push(Case::new("bce_as_a_sum", |r| {
        let logits = r.input(&[40], DType::F32, Fill::Normal(3.0));
        let targets = r.input(&[40], DType::U32, Fill::Ids(2));
        let weights = r.input(&[40], DType::F32, Fill::Uniform(0.0, 0.1));
        let op = BinaryCrossEntropy { weight: 50.0, eps: losses::SUM };
        binary_cross_entropy(r, op, [logits, targets, weights]).map(|_| ())
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("bce_8x128", |r| case(r, 1024, DType::F32, Fill::Normal(1.0)))]
}
