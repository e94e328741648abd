//! GELU (exact and tanh form) and tanh, element by element, and their gradients.

use super::gemm::Gelu;
use super::rows;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Gelu(Gelu),
    Tanh,
}

impl Function {
    fn wgsl(self) -> &'static str {
        match self {
            Function::Gelu(Gelu::Erf) => "gelu_erf",
            Function::Gelu(Gelu::Tanh) => "gelu_tanh",
            Function::Tanh => "tanh",
        }
    }
}

/// out = f(inp).
#[derive(Clone, Debug)]
pub struct Activation {
    pub function: Function,
}

/// Inputs saved (the input, for tanh the output) and dout; output dinp.
#[derive(Clone, Debug)]
pub struct ActivationBwd {
    pub function: Function,
}

/// gelu(x).
pub fn gelu(r: &mut dyn Recorder, form: Gelu, x: Var) -> Result<Var> {
    r.apply1(Activation { function: Function::Gelu(form) }, &[x])
}

/// tanh(x).
pub fn tanh(r: &mut dyn Recorder, x: Var) -> Result<Var> {
    r.apply1(Activation { function: Function::Tanh }, &[x])
}

fn launch(function: Function, pass: &'static str, bindings: &[Bind], spec: &Spec, caps: &Caps) -> Launch {
    let quads = spec.elements().div_ceil(4);
    let entry = if pass == "fwd" { "activation_fwd" } else { "activation_bwd" };
    let key = KernelKey::new("activation.wgsl", entry).with("PASS", pass).with("ACT", function.wgsl());
    let key = rows::element_key(key.with("T", spec.dtype.wgsl()), caps);
    let immediates = Immediates::new().u32(quads);
    let immediates = if pass == "bwd" { immediates.accumulate(0) } else { immediates.u32(0u32) };
    let cost = Cost { flops: 20.0 * spec.elements() as f64, bytes: bindings.len() as f64 * spec.bytes() as f64 };
    Launch::new(key, bindings, immediates, rows::element_grid(quads, caps), cost)
}

/// Error of value and slope in f32: GELU's own 1.6e-7 (see `shaders/shared/gelu.wgsl`), the driver's exp (1e-6 seen)
/// taken 0.5 times; the driver's tanh was seen to be off by 1.3e-7, and is built on exp elsewhere.
const ERROR: f64 = 1e-6;

impl Op for Activation {
    fn name(&self) -> &'static str {
        self.function.wgsl()
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 1)?;
        if ins[0].dtype == DType::U32 || ins[0].elements() == 0 {
            return Err(shape_error(self.name(), ins, "a float tensor expected"));
        }
        Ok(vec![ins[0].clone()])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(launch(self.function, "fwd", &[Bind::In(0), Bind::Out(0)], &io.ins[0], caps).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            let saved = if self.function == Function::Tanh { b.output(0) } else { b.input(0) };
            b.record(ActivationBwd { function: self.function }, &[saved, dout], &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let value = |&x: &f64| match self.function {
            Function::Gelu(form) => form.value(x),
            Function::Tanh => x.tanh(),
        };
        vec![ins[0].data.iter().map(value).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::EXACT.plus_abs(ERROR)
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        rows::worst_by(|i| ERROR * ins[0].data[i].abs().clamp(1.0, 13.0) + EPS * want[i].abs(), &io.outs[k], got, want)
    }
}

impl Op for ActivationBwd {
    fn name(&self) -> &'static str {
        match self.function {
            Function::Gelu(Gelu::Erf) => "gelu_erf_bwd",
            Function::Gelu(Gelu::Tanh) => "gelu_tanh_bwd",
            Function::Tanh => "tanh_bwd",
        }
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 2)?;
        Ok(vec![ins[0].clone()])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(launch(self.function, "bwd", &[Bind::In(0), Bind::In(1), Bind::Out(0)], &io.ins[0], caps).into())
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(rows::NO_SECOND_ORDER)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let slope = |x: f64| match self.function {
            Function::Gelu(form) => form.slope(x),
            Function::Tanh => 1.0 - x * x,
        };
        vec![ins[0].data.iter().zip(&ins[1].data).map(|(&x, d)| slope(x) * d).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::scale(ERROR)
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        rows::worst_by(|i| 2.0 * ERROR * ins[1].data[i].abs() + EPS * want[i].abs(), &io.outs[k], got, want)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for function in [Function::Gelu(Gelu::Erf), Function::Gelu(Gelu::Tanh), Function::Tanh] {
        for n in [1usize, 517, 8200] {
            cases.extend(Case::both(format!("activation_{}_{n}", function.wgsl()), move |r, dtype| {
                let x = r.input(&[n], dtype, Fill::Normal(3.0));
                let y = r.apply1_case(function, x)?;
                r.seed(y, Fill::Normal(1.0))
            }));
        }
        // Where exp overflows or vanishes, zero, and the joints of the approximations.
        let edges =
            vec![0.0, -0.0, 80.0, -80.0, 1e4, -1e4, 13.0, -13.0, 12.99, -6.0, 6.0, 1e-5, -1e-5, 60000.0, -60000.0];
        cases.extend(Case::both(format!("activation_{}_edges", function.wgsl()), move |r, dtype| {
            let x = r.input(&[15], dtype, Fill::Values(edges.clone()));
            let y = r.apply1_case(function, x)?;
            r.seed(y, Fill::Const(1.0))
        }));
    }
    cases
}

impl dyn CaseRecorder + '_ {
    fn apply1_case(&mut self, function: Function, x: Var) -> Result<Var> {
        let outs = self.record(Box::new(Activation { function }), &[x], &[])?;
        Ok(outs[0])
    }
}

pub fn bench_cases() -> Vec<Case> {
    [Function::Gelu(Gelu::Erf), Function::Tanh]
        .map(|function| {
            Case::new(format!("activation_{}_1024x1024", function.wgsl()), move |r| {
                let x = r.input(&[1024, 1024], DType::F32, Fill::Normal(1.0));
                let y = r.apply1_case(function, x)?;
                r.seed(y, Fill::Normal(1.0))
            })
        })
        .into()
}
