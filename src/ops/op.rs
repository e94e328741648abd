//! What an op is: one description from which recording, running, testing, profiling and `doctor` all work.

use super::launch::Program;
use super::tensor::{Host, Spec};
use crate::error::{Error, Kind, Result};
use crate::gpu::{Caps, Step};
use std::fmt;

/// A value in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub(crate) u32);

/// Specs of a recorded op's inputs and outputs.
#[derive(Clone, Debug)]
pub struct Io {
    pub ins: Vec<Spec>,
    pub outs: Vec<Spec>,
}

/// A way to run an op: `tile/64x64x16.vec4` and the numbers behind the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    pub name: String,
    /// Meaning is the op's own.
    pub args: Vec<u32>,
}

impl Variant {
    pub fn new(name: impl Into<String>, args: &[u32]) -> Variant {
        Variant { name: name.into(), args: args.to_vec() }
    }
}

/// Bound on |device - reference| of an element: `abs + element * |reference| + scale * max|reference|`, to which the
/// rounding of the output's storage is added. Derived by each op from its arithmetic, never fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub abs: f64,
    pub element: f64,
    pub scale: f64,
}

/// Unit roundoff of f32 arithmetic.
pub const EPS: f64 = 1.0 / 16_777_216.0;

impl Tolerance {
    /// Ids, counts, flags.
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, element: 0.0, scale: 0.0 };

    /// Relative to each element.
    pub fn element(element: f64) -> Tolerance {
        Tolerance { element, ..Self::EXACT }
    }

    /// Relative to the largest of the tensor: for sums in which terms cancel.
    pub fn scale(scale: f64) -> Tolerance {
        Tolerance { scale, ..Self::EXACT }
    }

    pub fn plus_abs(self, abs: f64) -> Tolerance {
        Tolerance { abs: self.abs + abs, ..self }
    }

    /// A sum of `n` products of comparable size: rounding errors grow like a random walk, sqrt(n) half-units of the
    /// running sum (Higham, Accuracy and Stability of Numerical Algorithms, 4.2), taken eight times over for the worst
    /// of many elements.
    pub fn sum(n: usize) -> Tolerance {
        Tolerance::scale(8.0 * (n.max(1) as f64).sqrt() * EPS)
    }
}

/// What an op's backward says of itself. There is no default: no gradient is dropped silently.
pub enum Backward {
    /// Every wanted gradient was contributed; the tape checks that.
    Rule,
    /// Gradients end here, for this reason.
    Stop(&'static str),
}

/// One operation on values.
pub trait Op: fmt::Debug + Send + Sync {
    /// Standard name with the layout if there is one: `gemm_nt`, `layer_norm_bwd`.
    fn name(&self) -> &'static str;

    /// Checks the inputs' shapes and types and gives the outputs'.
    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>>;

    /// Pairs (output, input) that are one and the same value, changed in place.
    fn updates(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Whether output `k` can be added to instead of written (its launches carry an `accumulate` parameter).
    fn accumulates(&self, _k: usize) -> bool {
        false
    }

    /// Every way to run it on such an adapter, preferred first; never empty on any adapter.
    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant>;

    /// The launches of one variant.
    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program>;

    /// Records the gradients of the inputs, or says why they stop.
    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward>;

    /// The same in f64 on the host: outputs in order. For an output changed in place, its new value.
    fn reference(&self, ins: &[&Host], io: &Io, step: &Step) -> Vec<Vec<f64>>;

    /// A bound for output `k`.
    fn tolerance(&self, io: &Io, k: usize) -> Tolerance;

    /// Worst |error| / bound over output `k`. Replaced where a value is not a number to compare (a sampled id).
    fn worst(&self, k: usize, _ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        worst_ratio(self.tolerance(io, k), &io.outs[k], got, want)
    }
}

/// Worst |got - want| / bound; infinite where only one of them is finite.
pub fn worst_ratio(tolerance: Tolerance, spec: &Spec, got: &[f64], want: &[f64]) -> f64 {
    let largest = want.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    let ratio = |(&got, &want): (&f64, &f64)| {
        if got == want || (got.is_nan() && want.is_nan()) {
            return 0.0;
        }
        // Beyond what the type stores, infinity is the right answer.
        let stored = spec.dtype.round(want);
        if !got.is_finite() || !stored.is_finite() {
            return if got == stored { 0.0 } else { f64::INFINITY };
        }
        let rounding = 2.0 * spec.dtype.epsilon() * want.abs() + spec.dtype.tiny();
        let bound = tolerance.abs + tolerance.element * want.abs() + tolerance.scale * largest + rounding;
        let error = (got - want).abs();
        if bound > 0.0 { error / bound } else { f64::INFINITY }
    };
    got.iter().zip(want).map(ratio).fold(0.0, f64::max)
}

/// Something that records ops; the tape. Model code is ordinary Rust that calls ops on one of these.
pub trait Recorder {
    fn spec(&self, v: Var) -> &Spec;

    /// Whether gradients are being recorded.
    fn training(&self) -> bool;

    /// Whether a gradient of `v` is wanted.
    fn needs_grad(&self, v: Var) -> bool;

    /// A number that no other place in this recording has: names a dropout site.
    fn site(&mut self) -> u32;

    /// Records `op`. Outputs become new values, apart from those changed in place and those named in `grads` as
    /// (output, v): these are contributions to the gradient of `v`, written or added as the plan finds.
    fn record(&mut self, op: Box<dyn Op>, ins: &[Var], grads: &[(usize, Var)]) -> Result<Vec<Var>>;

    /// Says that `grad` itself is (a contribution to) the gradient of `v`.
    fn pass_gradient(&mut self, v: Var, grad: Var) -> Result<()>;
}

impl dyn Recorder + '_ {
    /// Records an op whose outputs are all new values.
    pub fn apply(&mut self, op: impl Op + 'static, ins: &[Var]) -> Result<Vec<Var>> {
        self.record(Box::new(op), ins, &[])
    }

    /// Records an op and gives its first output.
    pub fn apply1(&mut self, op: impl Op + 'static, ins: &[Var]) -> Result<Var> {
        let name = op.name();
        let outs = self.apply(op, ins)?;
        outs.first().copied().ok_or_else(|| Error::new(Kind::Shape, format!("record {name}"), "it has no output"))
    }
}

/// What an op's backward works with.
pub struct Gradients<'a> {
    pub(crate) recorder: &'a mut dyn Recorder,
    pub(crate) ins: &'a [Var],
    pub(crate) outs: &'a [Var],
    pub(crate) douts: &'a [Option<Var>],
    pub(crate) contributed: Vec<bool>,
}

impl Gradients<'_> {
    pub fn input(&self, i: usize) -> Var {
        self.ins[i]
    }

    pub fn output(&self, k: usize) -> Var {
        self.outs[k]
    }

    /// The gradient of output `k`, where anything depends on it.
    pub fn dout(&self, k: usize) -> Option<Var> {
        self.douts[k]
    }

    pub fn spec(&self, v: Var) -> &Spec {
        self.recorder.spec(v)
    }

    /// Whether the gradient of input `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.recorder.needs_grad(self.ins[i])
    }

    /// Records a backward op; `grads` are (output of it, input of the forward op). Unwanted ones become plain values.
    pub fn record(&mut self, op: impl Op + 'static, ins: &[Var], grads: &[(usize, usize)]) -> Result<Vec<Var>> {
        let mut targets = Vec::new();
        for &(output, input) in grads {
            if self.wants(input) {
                self.contributed[input] = true;
                targets.push((output, self.ins[input]));
            }
        }
        self.recorder.record(Box::new(op), ins, &targets)
    }

    /// The gradient of input `i` is `grad` itself.
    pub fn pass(&mut self, i: usize, grad: Var) -> Result<()> {
        if self.wants(i) {
            self.contributed[i] = true;
            self.recorder.pass_gradient(self.ins[i], grad)?;
        }
        Ok(())
    }
}

/// An error about an op's inputs.
pub fn shape_error(op: &str, ins: &[Spec], happened: impl fmt::Display) -> Error {
    let shapes: Vec<String> = ins.iter().map(Spec::to_string).collect();
    Error::new(Kind::Shape, format!("record {op}({})", shapes.join(", ")), happened.to_string())
}

/// Checks the number of inputs.
pub fn expect_inputs(op: &str, ins: &[Spec], count: usize) -> Result<()> {
    if ins.len() == count { Ok(()) } else { Err(shape_error(op, ins, format!("{count} inputs expected"))) }
}
