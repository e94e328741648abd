//! The generator's vocabulary head and its loss in one op: logits exist for some rows at a time only.
//!
//! For a chunk of rows: logits = hidden tableᵀ, then one pass that takes loss, best id, a draw and the gradient, which
//! replaces the logits, then dhidden = dlogits table, dtable += dlogitsᵀ hidden, dbias += column sums of dlogits.

use super::gemm::{self, Layout, Operands, Product};
use super::losses::{self, Draw, Gradient, RowPass};
use super::rows::{self, EXP_ERROR, Lanes, sum_bound, worst_by, worst_choice};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, Step};

/// loss = weight * sum(w (lse - logit[label])) / (sum(w) + eps), logits = hidden tableᵀ + bias.
/// Inputs hidden [M, E], table [V, E], bias [V], labels [M] u32, weights [M]; outputs loss [1], statistics [8], best [M],
/// drawn ids [M] (with `draw`), and with `train` dhidden, dtable, dbias.
#[derive(Clone, Debug)]
pub struct VocabularyCrossEntropy {
    pub weight: f32,
    /// Or [`losses::SUM`].
    pub eps: f32,
    pub draw: Option<Draw>,
    pub train: bool,
    /// Most rows of logits at a time; by default what a memory budget of 64 MiB allows.
    pub rows_at_once: Option<usize>,
}

/// What the head gives.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary {
    pub loss: Var,
    /// See [`losses::STATISTICS`].
    pub statistics: Var,
    pub best: Var,
    pub drawn: Option<Var>,
}

/// The masked-language-model loss of `hidden`, weight * mean (eps may be [`losses::SUM`]); gradients go to hidden, table
/// and bias. `ins`: hidden, table, bias, labels,
/// weights.
pub fn vocabulary_cross_entropy(
    r: &mut dyn Recorder,
    [weight, eps]: [f32; 2],
    draw: Option<Draw>,
    ins: [Var; 5],
) -> Result<Vocabulary> {
    let train = ins[..3].iter().any(|&v| r.needs_grad(v));
    let op = VocabularyCrossEntropy { weight, eps, draw, train, rows_at_once: None };
    record(r, op, ins)
}

fn record(r: &mut dyn Recorder, op: VocabularyCrossEntropy, ins: [Var; 5]) -> Result<Vocabulary> {
    let first = 3 + usize::from(op.draw.is_some());
    let drawn = op.draw.is_some();
    let grads: Vec<(usize, Var)> =
        (0..3).filter(|&i| op.train && r.needs_grad(ins[i])).map(|i| (first + i, ins[i])).collect();
    let outs = r.record(Box::new(op), &ins, &grads)?;
    Ok(Vocabulary { loss: outs[0], statistics: outs[1], best: outs[2], drawn: drawn.then(|| outs[3]) })
}

/// Chunks start at multiples of this many rows, so that they start at multiples of a binding's alignment.
const ROWS: usize = 128;

/// Logits held at a time.
const BUDGET: usize = 64 << 20;

impl VocabularyCrossEntropy {
    fn scales(&self) -> [f32; 2] {
        [self.weight, self.eps]
    }

    /// Output number of dhidden; dtable and dbias follow.
    fn gradients(&self) -> usize {
        3 + usize::from(self.draw.is_some())
    }

    fn chunk(&self, io: &Io, caps: &Caps) -> usize {
        let (rows, vocabulary) = (io.ins[0].rows(), io.ins[1].rows());
        let bytes = BUDGET.min(caps.limits.binding_bytes as usize);
        let fits = bytes / (vocabulary * io.ins[0].dtype.bytes() as usize) / ROWS * ROWS;
        self.rows_at_once.unwrap_or(fits).max(ROWS).min(rows)
    }

    fn logits(&self, io: &Io, rows: usize) -> Product {
        let (hidden, table) = (&io.ins[0], &io.ins[1]);
        let types = [hidden.dtype, table.dtype, hidden.dtype];
        Product::new(Layout::Nt, [rows, table.rows(), hidden.width()], types)
    }

    /// Logits of row `r`, and what the product may be off by: its sum, the storage of logits, the bias.
    fn row(&self, ins: &[&Host], r: usize) -> (Vec<f64>, f64) {
        let (hidden, width) = (ins[0].row(r), ins[0].spec.width());
        let mut slack = 0.0f64;
        let logit = |v: usize| {
            let terms = || hidden.iter().zip(ins[1].row(v)).map(|(h, t)| h * t);
            let (sum, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let stored = 2.0 * ins[0].spec.dtype.epsilon() * sum.abs() + ins[0].spec.dtype.tiny();
            slack = slack.max(sum_bound(width, magnitude) + stored + EPS * ins[2].data[v].abs());
            sum + ins[2].data[v]
        };
        ((0..ins[1].spec.rows()).map(logit).collect(), slack)
    }

    fn gradient_scale(&self, ins: &[&Host], step: &Step) -> f64 {
        losses::gradient_scale(ins[4].data.iter().sum(), self.scales(), step.loss_scale)
    }
}

impl Op for VocabularyCrossEntropy {
    fn name(&self) -> &'static str {
        "vocabulary_cross_entropy"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 5)?;
        let (rows, width) = (ins[0].rows(), ins[0].width());
        let float = |s: &Spec| s.dtype != DType::U32 && s.elements() > 0;
        if !float(&ins[0]) || !float(&ins[1]) || ins[1].width() != width || ins[2] != Spec::f32(&[ins[1].rows()]) {
            return Err(shape_error(self.name(), ins, "hidden [M, E], table [V, E] and an f32 bias [V] expected"));
        }
        let labels = ins[3].dtype == DType::U32 && ins[3].elements() == rows;
        if !labels || ins[4].dtype != DType::F32 || ins[4].elements() != rows {
            return Err(shape_error(self.name(), ins, format!("{rows} u32 labels and f32 weights expected")));
        }
        let mut outs = vec![Spec::f32(&[1]), Spec::f32(&[losses::STATISTICS]), Spec::u32(&[rows])];
        outs.extend(self.draw.map(|_| Spec::u32(&[rows])));
        if self.train {
            outs.extend([ins[0].clone(), Spec::f32(&ins[1].shape), ins[2].clone()]);
        }
        Ok(outs)
    }

    fn accumulates(&self, k: usize) -> bool {
        k >= self.gradients()
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        gemm::variants(&self.logits(io, self.chunk(io, caps)), caps)
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let (hidden, table) = (&io.ins[0], &io.ins[1]);
        let (count, width, vocabulary) = (hidden.rows(), hidden.width(), table.rows());
        let dtype = hidden.dtype;
        let chunk = self.chunk(io, caps);
        let out = self.gradients();
        let long = rows::row_variants(caps, vocabulary >= 2048);
        let lanes = Lanes::of(long.first().unwrap_or(variant));
        let [logits, denominator, loss, partial, sums] = [0, 1, 2, 3, 4].map(Bind::Scratch);
        const PARTS: usize = 5;
        let groups = losses::groups(count, false);
        // Rows that one invocation of the bias gradient sums.
        let group = chunk.div_ceil(32).max(16);
        let scratch = vec![
            (chunk * vocabulary) as u64 * dtype.bytes(),
            8,
            4 * count as u64,
            32 * groups as u64,
            if self.train { 4 * (chunk.div_ceil(group) * vocabulary) as u64 } else { 4 },
        ];
        let mut program = Program { launches: Vec::new(), scratch };
        if self.train {
            program.launches.push(losses::weight_sum(Bind::In(4), false, count, self.scales(), denominator));
        }
        for first in (0..count).step_by(chunk) {
            let size = chunk.min(count - first);
            let (offset, bytes) = ((first * width) as u64 * dtype.bytes(), (size * width) as u64 * dtype.bytes());
            let whole = size == count;
            let rows_in = if whole { Bind::In(0) } else { Bind::InAt { input: 0, offset, bytes } };
            let rows_out = if whole { Bind::Out(out) } else { Bind::OutAt { output: out, offset, bytes } };
            let put = |k: usize| if first == 0 { Store::Output(k) } else { Store::Add };
            let forward = Operands { a: rows_in, b: Bind::In(1), c: logits, extra: vec![] };
            self.logits(io, size).launch(&forward, Store::Write, variant, PARTS, caps, &mut program)?;
            let pass = RowPass {
                dtype,
                width: vocabulary,
                rows: size,
                first,
                bias: Some(Bind::In(2)),
                weights: Some(Bind::In(4)),
                draw: self.draw.map(|d| (d, Bind::Out(3))),
                gradient: if self.train { Gradient::InPlace } else { Gradient::None },
            };
            program.launches.push(pass.launch([logits, Bind::In(3), denominator, loss, Bind::Out(2)], lanes, caps));
            if !self.train {
                continue;
            }
            let through = Operands { a: logits, b: Bind::In(1), c: rows_out, extra: vec![] };
            let product = Product::new(Layout::Nn, [size, width, vocabulary], [dtype, table.dtype, dtype]);
            product.launch(&through, Store::Output(out), variant, PARTS, caps, &mut program)?;
            let weights = Operands { a: logits, b: rows_in, c: Bind::Out(out + 1), extra: vec![] };
            let product = Product::new(Layout::Tn, [vocabulary, width, size], [dtype, dtype, DType::F32]);
            product.launch(&weights, put(out + 1), variant, PARTS, caps, &mut program)?;
            let sizes = [size, vocabulary, vocabulary, 0];
            let (to, store) = (Bind::Out(out + 2), put(out + 2));
            program.launches.extend(reduce::column_launches((logits, dtype), sizes, group, sums, to, store));
        }
        program.launches.push(losses::row_statistics(
            [loss, Bind::Out(2), Bind::In(3), partial],
            Some(Bind::In(4)),
            count,
        ));
        program.launches.push(losses::finish(partial, groups, self.scales(), Bind::Out(1), Bind::Out(0)));
        Ok(program)
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("a loss writes its gradients in the forward pass"))
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let (count, width, vocabulary) = (io.ins[0].rows(), io.ins[0].width(), io.ins[1].rows());
        let scale = self.gradient_scale(ins, step);
        let (mut totals, mut best, mut drawn) = (Vec::new(), Vec::new(), Vec::new());
        let mut dhidden = vec![0.0; count * width];
        let (mut dtable, mut dbias) = (vec![0.0; vocabulary * width], vec![0.0; vocabulary]);
        for r in 0..count {
            let (logits, _) = self.row(ins, r);
            let (label, weight) = (ins[3].index(r).min(vocabulary - 1), ins[4].data[r]);
            let lse = losses::log_sum_exp(&logits);
            let chosen = losses::first_best(&logits);
            totals.push((lse - logits[label], weight, chosen as f64 == ins[3].data[r]));
            best.push(chosen as f64);
            if let Some(draw) = &self.draw {
                drawn.push(losses::first_best(&sample::scores(step, draw, r, &logits, Some(label))) as f64);
            }
            for (v, x) in logits.iter().enumerate().filter(|_| self.train) {
                let d = ((x - lse).exp() - f64::from(u8::from(v == label))) * weight * scale;
                dbias[v] += d;
                for c in 0..width {
                    dhidden[r * width + c] += d * ins[1].data[v * width + c];
                    dtable[v * width + c] += d * ins[0].data[r * width + c];
                }
            }
        }
        let (loss, statistics) = losses::row_totals(&totals, self.scales());
        let mut outs = vec![loss, statistics, best];
        outs.extend(self.draw.map(|_| drawn));
        outs.extend(self.train.then_some([dhidden, dtable, dbias]).into_iter().flatten());
        outs
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width() + io.ins[1].rows() + io.ins[0].rows())
    }

    // A logit is known to `slack`, so a probability to exp's error and twice the slack, relatively, and dlogits to the
    // rounding of their storage; what is summed from them to the sum of these errors and the sum's own.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let (count, width, vocabulary) = (io.ins[0].rows(), io.ins[0].width(), io.ins[1].rows());
        let rows: Vec<(Vec<f64>, f64)> = (0..count).map(|r| self.row(ins, r)).collect();
        let label = |r: usize| ins[3].index(r).min(vocabulary - 1);
        if k == 2 {
            return worst_choice(got, |r| rows[r].0.clone(), |r, _| 2.0 * rows[r].1);
        }
        if let (3, Some(draw)) = (k, &self.draw) {
            let score = |r: usize| sample::scores(step, draw, r, &rows[r].0, Some(label(r)));
            return worst_choice(got, score, |r, scores| sample::draw_slack(draw, scores, rows[r].1));
        }
        if k < 2 {
            let (mut sum, mut error, mut ties) = (0.0, 0.0, 0.0);
            for (r, (logits, slack)) in rows.iter().enumerate() {
                let (loss, known) = losses::row_loss(logits, label(r), *slack);
                let weight = ins[4].data[r];
                sum += weight * loss;
                error += weight * known;
                // A row whose best two are within the slack may count as right or not.
                let best = losses::first_best(logits);
                let close = |(v, x): (usize, &f64)| v != best && logits[best] - x <= 2.0 * slack;
                ties += if logits.iter().enumerate().any(close) { weight } else { 0.0 };
            }
            let total = error + sum_bound(count, sum);
            let bound = |i: usize| match (k, i) {
                (0, _) | (1, 2) => want[i].abs() * (total / sum.max(1e-300) + sum_bound(count, 1.0) + 4.0 * EPS),
                (1, 0) => total,
                (1, 3) => ties + sum_bound(count, want[i]),
                _ => sum_bound(count, want[i].abs()),
            };
            return worst_by(bound, &io.outs[k], got, want);
        }
        let scale = self.gradient_scale(ins, step).abs();
        let stored = 2.0 * io.ins[0].dtype.epsilon();
        let (mut errors, mut magnitudes) = (vec![0.0; want.len()], vec![0.0; want.len()]);
        for (r, (logits, slack)) in rows.iter().enumerate() {
            let lse = losses::log_sum_exp(logits);
            let known = EXP_ERROR + losses::row_loss(logits, label(r), *slack).1 + 4.0 * EPS * lse.abs();
            for (v, x) in logits.iter().enumerate() {
                let p = (x - lse).exp();
                let d = (p - f64::from(u8::from(v == label(r)))).abs() * ins[4].data[r] * scale;
                let unit = ins[4].data[r] * scale;
                let error = unit * (p * (2.0 * known).exp_m1() + 2.0 * EPS)
                    + d * (stored + sum_bound(count, 1.0))
                    + io.ins[0].dtype.tiny();
                let mut add = |i: usize, factor: f64| {
                    errors[i] += error * factor.abs();
                    magnitudes[i] += d * factor.abs();
                };
                match k - self.gradients() {
                    0 => (0..width).for_each(|c| add(r * width + c, ins[1].data[v * width + c])),
                    1 => (0..width).for_each(|c| add(v * width + c, ins[0].data[r * width + c])),
                    _ => add(v, 1.0),
                }
            }
        }
        let terms = if k == self.gradients() { vocabulary } else { count };
        worst_by(|i| errors[i] + sum_bound(terms, magnitudes[i]) + EPS * want[i].abs(), &io.outs[k], got, want)
    }
}

fn inputs(r: &mut dyn CaseRecorder, [m, e, v]: [usize; 3], dtype: DType) -> [Var; 5] {
    [
        r.input(&[m, e], dtype, Fill::Normal(1.0)),
        r.input(&[v, e], dtype, Fill::Normal(0.5)),
        r.input(&[v], DType::F32, Fill::Normal(1.0)),
        r.input(&[m], DType::U32, Fill::Ids(v)),
        r.input(&[m], DType::F32, Fill::Values(vec![1.0, 1.0, 0.0])),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (sizes, train, draws) in [
        ([1usize, 4, 3], true, false),
        ([7, 12, 37], true, true),
        ([40, 16, 100], true, true),
        ([6, 8, 64], false, true),
    ] {
        let [m, e, v] = sizes;
        let name = format!("vocabulary_{m}x{e}x{v}{}", if train { "" } else { "_without_gradients" });
        cases.extend(Case::both(name, move |r, dtype| {
            let ins = inputs(r, sizes, dtype);
            let draw = draws.then(|| Draw { site: r.site(), temperature: 1.0, never_right: v == 37 });
            let op = VocabularyCrossEntropy { weight: 1.5, eps: 1e-6, draw, train, rows_at_once: None };
            record(r, op, ins).map(|_| ())
        }));
    }
    // More rows than are taken at once: the last chunk is a part of one.
    cases.extend(Case::both("vocabulary_in_three_chunks", |r, dtype| {
        let ins = inputs(r, [300, 8, 44], dtype);
        let draw = Some(Draw { site: r.site(), temperature: 1.0, never_right: false });
        let op = VocabularyCrossEntropy { weight: 1.0, eps: losses::SUM, draw, train: true, rows_at_once: Some(128) };
        record(r, op, ins).map(|_| ())
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("vocabulary_160x128x32000", |r| {
        let ins = inputs(r, [160, 128, 32_000], DType::F32);
        let draw = Some(Draw { site: r.site(), temperature: 1.0, never_right: false });
        vocabulary_cross_entropy(r, [1.0, 1e-6], draw, ins).map(|_| ())
    })]
}
