//! The linear layer y = x wᵀ + bias with weights (out, in), and the feed-forward block of two of them around GELU.

use super::*;
use crate::ops::reduce::ColumnSum;

/// y[.., N] = x[.., K] w[N, K]ᵀ (+ bias[N]); y is stored as x is.
pub fn linear(r: &mut dyn Recorder, x: Var, w: Var, bias: Option<Var>) -> Result<Var> {
    let out = r.spec(x).dtype;
    let epilogue = if bias.is_some() { Epilogue::Bias } else { Epilogue::None };
    let op = Gemm { epilogue, weight: true, ..Gemm::new(Layout::Nt, out) };
    let ins: Vec<Var> = [x, w].into_iter().chain(bias).collect();
    r.apply1(op, &ins)
}

/// y = gelu(x w1ᵀ + b1) w2ᵀ + b2.
pub fn ffn(r: &mut dyn Recorder, gelu: Gelu, x: Var, [w1, b1, w2, b2]: [Var; 4]) -> Result<Var> {
    r.apply1(Ffn { gelu }, &[x, w1, b1, w2, b2])
}

/// The feed-forward block as one op: inputs x, w1, b1, w2, b2; outputs y, gelu(pre) and pre, both kept for backward.
///
/// One op, because then the gradient through GELU is taken where the gradient of its output is made, in the epilogue
/// of a product.
#[derive(Clone, Debug)]
pub struct Ffn {
    pub gelu: Gelu,
}

impl Ffn {
    fn up(&self, out: DType) -> Gemm {
        Gemm { epilogue: Epilogue::BiasGelu(self.gelu), ..Gemm::new(Layout::Nt, out) }
    }

    fn down(&self, out: DType) -> Gemm {
        Gemm { epilogue: Epilogue::Bias, ..Gemm::new(Layout::Nt, out) }
    }

    /// Inputs and outputs of the two halves.
    fn halves(&self, io: &Io) -> (Io, Io) {
        let up = Io { ins: io.ins[..3].to_vec(), outs: vec![io.outs[1].clone(), io.outs[2].clone()] };
        let down =
            Io { ins: vec![io.outs[1].clone(), io.ins[3].clone(), io.ins[4].clone()], outs: vec![io.outs[0].clone()] };
        (up, down)
    }
}

impl Op for Ffn {
    fn name(&self) -> &'static str {
        "ffn"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 5)?;
        let dtype = ins[0].dtype;
        let hidden = self.up(dtype).outputs(&ins[..3])?;
        let y = self.down(dtype).outputs(&[hidden[0].clone(), ins[3].clone(), ins[4].clone()])?;
        Ok([y, hidden].concat())
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        let (up, down) = self.halves(io);
        let mut first = self.up(io.outs[1].dtype).variants(&up, caps);
        let second = self.down(io.outs[0].dtype).variants(&down, caps);
        // One name stands for both halves, which are the same amount of work; every kernel of either can make both.
        first.extend(second.into_iter().filter(|v| !first.contains(v)).collect::<Vec<_>>());
        first
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let mut program = Program::default();
        let (up_io, down_io) = self.halves(io);
        let up = Operands { a: Bind::In(0), b: Bind::In(1), c: Bind::Out(1), extra: vec![Bind::In(2), Bind::Out(2)] };
        let down = Operands { a: Bind::Out(1), b: Bind::In(3), c: Bind::Out(0), extra: vec![Bind::In(4)] };
        self.up(io.outs[1].dtype).of(&up_io)?.launch(&up, Store::Write, variant, 0, caps, &mut program)?;
        self.down(io.outs[0].dtype).of(&down_io)?.launch(&down, Store::Write, variant, 0, caps, &mut program)?;
        Ok(program)
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        let Some(dy) = b.dout(0) else {
            return Ok(Backward::Stop("only its first output has a gradient"));
        };
        let (x, w1, w2, act, pre) = (b.input(0), b.input(1), b.input(3), b.output(1), b.output(2));
        let dtype = b.spec(pre).dtype;
        let weight_gradient = Gemm::new(Layout::Tn, DType::F32);
        if b.wants(3) {
            b.record(weight_gradient.clone(), &[dy, act], &[(0, 3)])?;
        }
        if b.wants(4) {
            b.record(ColumnSum, &[dy], &[(0, 4)])?;
        }
        if b.wants(0) || b.wants(1) || b.wants(2) {
            let through = Gemm { epilogue: Epilogue::GeluGrad(self.gelu), ..Gemm::new(Layout::Nn, dtype) };
            let dpre = b.record(through, &[dy, w2, pre], &[])?[0];
            if b.wants(1) {
                b.record(weight_gradient, &[dpre, x], &[(0, 1)])?;
            }
            if b.wants(2) {
                b.record(ColumnSum, &[dpre], &[(0, 2)])?;
            }
            if b.wants(0) {
                b.record(Gemm::new(Layout::Nn, dtype), &[dpre, w1], &[(0, 0)])?;
            }
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let (up_io, down_io) = self.halves(io);
        let hidden = self.up(io.outs[1].dtype).reference(&ins[..3], &up_io, step);
        let Some(act) = hidden.first() else { return Vec::new() };
        let act = Host { spec: io.outs[1].clone(), data: act.clone() };
        let y = self.down(io.outs[0].dtype).reference(&[&act, ins[3], ins[4]], &down_io, step);
        [y, hidden].concat()
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].width() + io.ins[3].width())
    }

    // The hidden values by their own bounds; y by those of its sum plus what the hidden values' errors (their storage
    // included) become when multiplied with w2.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let (up_io, down_io) = self.halves(io);
        let up = self.up(io.outs[1].dtype);
        if k > 0 {
            return up.worst(k - 1, &ins[..3], &up_io, step, got, want);
        }
        let (Ok(first), Ok(second)) = (up.of(&up_io), self.down(io.outs[0].dtype).of(&down_io)) else {
            return f64::INFINITY;
        };
        let (pre, magnitudes) = sums(&first, &ins[0].data, &ins[1].data);
        let stored = io.outs[1].dtype.epsilon();
        let mut act = Vec::with_capacity(pre.len());
        let mut error = Vec::with_capacity(pre.len());
        for (i, (&sum, &magnitude)) in pre.iter().zip(&magnitudes).enumerate() {
            let x = sum + ins[2].data[i % first.n];
            let value = self.gelu.value(x);
            act.push(value.abs());
            let sum_error = GELU_SLOPE * (sum_bound(first.k, magnitude) + 2.0 * EPS * x.abs());
            error.push(sum_error + GELU_ERROR * x.abs().max(1.0) + 2.0 * stored * value.abs());
        }
        let (_, magnitudes) = sums(&second, &act, &ins[3].data);
        let (_, carried) = sums(&second, &error, &ins[3].data);
        let bias = |i: usize| ins[4].data[i % second.n].abs();
        let bound = |i: usize| sum_bound(second.k, magnitudes[i]) + carried[i] + EPS * (want[i].abs() + bias(i));
        worst_by(bound, &io.outs[0], got, want)
    }
}
