//! Softmax cross-entropy of rows with labels: classification. The gradient is made in the same pass.

use super::losses::{self, Gradient, IGNORE, RowPass};
use super::rows::{self, EXP_ERROR, Lanes, sum_bound, worst_by, worst_choice};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, Step};

/// loss = weight * sum(w (lse - logit[label])) / (sum(w) + eps). Inputs logits [.., K], labels u32 of its rows, and weights
/// (without: 1, and 0 for the label [`IGNORE`]); outputs loss [1], statistics [8], best class of each row, dlogits.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    pub weight: f32,
    /// Or [`losses::SUM`].
    pub eps: f32,
    pub weighted: bool,
}

/// What a loss gives.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub loss: Var,
    /// See [`losses::STATISTICS`].
    pub statistics: Var,
    /// The best class of each row.
    pub best: Var,
}

/// The mean cross-entropy of labelled rows; its gradient goes to `logits`.
pub fn cross_entropy(r: &mut dyn Recorder, logits: Var, labels: Var, weights: Option<Var>) -> Result<Loss> {
    let op = CrossEntropy { weight: 1.0, eps: 0.0, weighted: weights.is_some() };
    let ins: Vec<Var> = [logits, labels].into_iter().chain(weights).collect();
    let grads: &[(usize, Var)] = if r.needs_grad(logits) { &[(3, logits)] } else { &[] };
    let outs = r.record(Box::new(op), &ins, grads)?;
    Ok(Loss { loss: outs[0], statistics: outs[1], best: outs[2] })
}

impl CrossEntropy {
    fn scales(&self) -> [f32; 2] {
        [self.weight, self.eps]
    }

    /// (label, weight) of a row.
    fn row(&self, ins: &[&Host], r: usize) -> (usize, f64) {
        let label = ins[1].data[r];
        let weight = if self.weighted { ins[2].data[r] } else { f64::from(u8::from(label != f64::from(IGNORE))) };
        ((label as usize).min(ins[0].spec.width() - 1), weight)
    }

    fn gradient_scale(&self, ins: &[&Host], step: &Step) -> f64 {
        let total: f64 = (0..ins[0].spec.rows()).map(|r| self.row(ins, r).1).sum();
        losses::gradient_scale(total, self.scales(), step.loss_scale)
    }
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 2 + usize::from(self.weighted))?;
        let rows = ins[0].rows();
        if ins[0].dtype == DType::U32
            || ins[0].elements() == 0
            || ins[1].dtype != DType::U32
            || ins[1].elements() != rows
        {
            return Err(shape_error(self.name(), ins, format!("float logits and {rows} u32 labels expected")));
        }
        if self.weighted && (ins[2].dtype != DType::F32 || ins[2].elements() != rows) {
            return Err(shape_error(self.name(), ins, format!("{rows} f32 weights expected")));
        }
        Ok(vec![Spec::f32(&[1]), Spec::f32(&[losses::STATISTICS]), Spec::u32(&[rows]), ins[0].clone()])
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        rows::row_variants(caps, io.ins[0].width() >= 2048)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let count = spec.rows();
        let weights = self.weighted.then_some(Bind::In(2));
        let [denominator, loss, partial] = [0, 1, 2].map(Bind::Scratch);
        let pass = RowPass {
            dtype: spec.dtype,
            width: spec.width(),
            rows: count,
            first: 0,
            bias: None,
            weights,
            draw: None,
            gradient: Gradient::To(Bind::Out(3)),
        };
        let groups = losses::groups(count, false);
        let labels = Bind::In(1);
        let launches = vec![
            losses::weight_sum(weights.unwrap_or(labels), weights.is_none(), count, self.scales(), denominator),
            pass.launch([Bind::In(0), labels, denominator, loss, Bind::Out(2)], Lanes::of(variant), caps),
            losses::row_statistics([loss, Bind::Out(2), labels, partial], weights, count),
            losses::finish(partial, groups, self.scales(), Bind::Out(1), Bind::Out(0)),
        ];
        Ok(Program { launches, scratch: vec![8, 4 * count as u64, 32 * groups as u64] })
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("a loss writes its gradient in the forward pass"))
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let scale = self.gradient_scale(ins, step);
        let (mut totals, mut best, mut dlogits) = (Vec::new(), Vec::new(), Vec::with_capacity(io.ins[0].elements()));
        for r in 0..io.ins[0].rows() {
            let (row, (label, weight)) = (ins[0].row(r), self.row(ins, r));
            let lse = losses::log_sum_exp(row);
            let chosen = losses::first_best(row);
            totals.push((lse - row[label], weight, chosen as f64 == ins[1].data[r]));
            best.push(chosen as f64);
            let onehot = |c: usize| f64::from(u8::from(c == label));
            dlogits.extend(row.iter().enumerate().map(|(c, x)| ((x - lse).exp() - onehot(c)) * weight * scale));
        }
        let (loss, statistics) = losses::row_totals(&totals, self.scales());
        vec![loss, statistics, best, dlogits]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width() + io.ins[0].rows())
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let (count, width) = (io.ins[0].rows(), io.ins[0].width());
        let errors: Vec<f64> = (0..count).map(|r| losses::row_loss(ins[0].row(r), self.row(ins, r).0, 0.0).1).collect();
        let scale = self.gradient_scale(ins, step).abs();
        let bound = |i: usize| match k {
            3 => {
                let (r, (label, weight)) = (i / width, self.row(ins, i / width));
                let p = want[i] / (weight * scale).max(1e-300) + f64::from(u8::from(i % width == label));
                let argument = (ins[0].data[i] - ins[0].row(r).iter().copied().fold(f64::NEG_INFINITY, f64::max)).abs();
                let known = EXP_ERROR + errors[r] + 2.0 * EPS * argument.min(200.0);
                weight * scale * (p.abs() * known + 2.0 * EPS) * (1.0 + sum_bound(count, 1.0))
                    + sum_bound(count, 1.0) * want[i].abs()
            }
            _ => {
                let (mut sum, mut error) = (0.0, 0.0);
                for (r, known) in errors.iter().enumerate() {
                    let (label, weight) = self.row(ins, r);
                    let loss = losses::row_loss(ins[0].row(r), label, 0.0).0;
                    if weight != 0.0 {
                        sum += (weight * loss).abs();
                        error += weight.abs() * known;
                    }
                }
                let total = error + sum_bound(count, sum);
                let by = |i: usize| if sum == 0.0 { 0.0 } else { want[i].abs() / sum };
                match (k, i) {
                    (0, _) | (1, 2) => total * by(i) + sum_bound(count, want[i].abs()) + 4.0 * EPS * want[i].abs(),
                    (1, 0) => total,
                    _ => sum_bound(count, want[i].abs()),
                }
            }
        };
        match k {
            2 => worst_choice(got, |r| ins[0].row(r).to_vec(), |_, _| f64::MIN_POSITIVE),
            _ => worst_by(bound, &io.outs[k], got, want),
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, classes) in [(1usize, 2usize), (7, 9), (70, 64), (3, 1021), (5, 4096)] {
        cases.extend(Case::both(format!("cross_entropy_{rows}x{classes}"), move |r, dtype| {
            let logits = r.input(&[rows, classes], dtype, Fill::Normal(3.0));
            let labels = r.input(&[rows], DType::U32, Fill::Ids(classes));
            cross_entropy(r, logits, labels, None).map(|_| ())
        }));
    }
    cases.push(Case::new("cross_entropy_with_ignored_rows_and_ties", |r| {
        let logits = r.input(&[6, 4], DType::F32, Fill::Values(vec![1.5, 1.5, 0.0, 1.5, -60000.0, 60000.0, 0.0, 1e30]));
        let labels = r.input(&[6], DType::U32, Fill::Values(vec![0.0, f64::from(IGNORE), 3.0]));
        cross_entropy(r, logits, labels, None).map(|_| ())
    }));
    cases.push(Case::new("cross_entropy_with_weights", |r| {
        let logits = r.input(&[9, 20], DType::F32, Fill::Normal(2.0));
        let labels = r.input(&[9], DType::U32, Fill::Ids(20));
        let weights = r.input(&[9], DType::F32, Fill::Values(vec![0.0, 1.0, 0.25]));
        cross_entropy(r, logits, labels, Some(weights)).map(|_| ())
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("cross_entropy_160x32000", |r| {
        let logits = r.input(&[160, 32_000], DType::F32, Fill::Normal(1.0));
        let labels = r.input(&[160], DType::U32, Fill::Ids(32_000));
        cross_entropy(r, logits, labels, None).map(|_| ())
    })]
}
