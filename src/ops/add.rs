//! y = a + b, and y += a. The tape uses the second where an op cannot add to a gradient itself.

use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// Elements of one workgroup: 256 threads, a vec4 each.
const PER_WORKGROUP: usize = 1024;

/// y = a + b, same shape and type.
#[derive(Clone, Debug)]
pub struct Add;

/// y += a in place; inputs (y, a).
#[derive(Clone, Debug)]
pub struct AddInto;

/// a + b.
pub fn add(r: &mut dyn Recorder, a: Var, b: Var) -> Result<Var> {
    r.apply1(Add, &[a, b])
}

fn same_specs(op: &'static str, ins: &[Spec]) -> Result<Vec<Spec>> {
    expect_inputs(op, ins, 2)?;
    if ins[0] != ins[1] || ins[0].dtype == DType::U32 {
        return Err(shape_error(op, ins, "two float tensors of one shape and type expected"));
    }
    Ok(vec![ins[0].clone()])
}

fn program(entry: &'static str, bindings: &[Bind], io: &Io, caps: &Caps) -> Program {
    let spec = &io.outs[0];
    let n = spec.elements();
    let kernel = KernelKey::new("add.wgsl", entry).with("T", spec.dtype.wgsl());
    let grid = fold_grid(n.div_ceil(PER_WORKGROUP), caps.limits.workgroups_per_dimension);
    let cost = Cost { flops: n as f64, bytes: 3.0 * spec.bytes() as f64 };
    Launch::new(kernel, bindings, Immediates::new().u32(n.div_ceil(4)), grid, cost).into()
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        same_specs(self.name(), ins)
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(program("add", &[Bind::In(0), Bind::In(1), Bind::Out(0)], io, caps))
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            b.pass(0, dout)?;
            b.pass(1, dout)?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![ins[0].data.iter().zip(&ins[1].data).map(|(a, b)| a + b).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::element(EPS)
    }
}

impl Op for AddInto {
    fn name(&self) -> &'static str {
        "add_into"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        same_specs(self.name(), ins)
    }

    fn updates(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(program("add_into", &[Bind::In(1), Bind::Out(0)], io, caps))
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("it changes a gradient in place, and gradients of gradients are not taken"))
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![ins[0].data.iter().zip(&ins[1].data).map(|(a, b)| a + b).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::element(EPS)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [1usize, 3, 4, 1023, 1024, 1025, 70_001] {
        cases.extend(Case::both(format!("add_{n}"), move |r, dtype| {
            let a = r.input(&[n], dtype, Fill::Normal(1.0));
            let b = r.input(&[n], dtype, Fill::Normal(100.0));
            let y = add(r, a, b)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    cases.extend(Case::both("add_into_517", |r, dtype| {
        let y = r.input(&[517], dtype, Fill::Normal(1.0));
        let a = r.input(&[517], dtype, Fill::Normal(1.0));
        r.record(Box::new(AddInto), &[y, a], &[])?;
        Ok(())
    }));
    // The same value on both sides: two contributions to one gradient.
    cases.push(Case::new("add_of_a_value_to_itself", |r| {
        let a = r.input(&[77], DType::F32, Fill::Normal(1.0));
        let y = add(r, a, a)?;
        r.seed(y, Fill::Normal(1.0))
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    [(1024usize, 256usize), (1024, 768)]
        .map(|(rows, width)| {
            Case::new(format!("add_{rows}x{width}"), move |r| {
                let a = r.input(&[rows, width], DType::F32, Fill::Normal(1.0));
                let b = r.input(&[rows, width], DType::F32, Fill::Normal(1.0));
                add(r, a, b).map(|_| ())
            })
        })
        .into()
}
