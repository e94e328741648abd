//! Dropout. Forward and backward are the same op: the mask comes back from (key, site, element).

use super::random::DropRate;
use super::rows;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// out = inp * mask.
#[derive(Clone, Debug)]
pub struct Dropout {
    pub rate: DropRate,
    pub site: u32,
}

/// x with a share of its elements set to 0 and the others scaled; x itself where nothing is trained.
pub fn dropout(r: &mut dyn Recorder, rate: DropRate, x: Var) -> Result<Var> {
    if !r.training() || rate.threshold == 0 {
        return Ok(x);
    }
    let site = r.site();
    r.apply1(Dropout { rate, site }, &[x])
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 1)?;
        if ins[0].dtype == DType::U32 || ins[0].elements() == 0 {
            return Err(shape_error(self.name(), ins, "a float tensor expected"));
        }
        Ok(vec![ins[0].clone()])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let quads = spec.elements().div_ceil(4);
        let key = KernelKey::new("dropout.wgsl", "dropout").with("T", spec.dtype.wgsl()).with("STEP_BINDING", 2u32);
        let immediates = Immediates::new().u32(quads).u32(self.site).u32(self.rate.threshold).f32(self.rate.scale);
        let cost = Cost { flops: spec.elements() as f64, bytes: 2.0 * spec.bytes() as f64 };
        let bindings = [Bind::In(0), Bind::Out(0), Bind::Step];
        let grid = rows::element_grid(quads, caps);
        Ok(Launch::new(rows::element_key(key, caps), &bindings, immediates.accumulate(0), grid, cost).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            b.record(self.clone(), &[dout], &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let keep = |(i, x): (usize, &f64)| x * self.rate.factor(step, self.site, i as u64);
        vec![ins[0].data.iter().enumerate().map(keep).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::element(2.0 * EPS)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, p) in [(1usize, 0.5f32), (3, 0.1), (1031, 0.1), (70_000, 0.9)] {
        cases.extend(Case::both(format!("dropout_{n}_at_{p}"), move |r, dtype| {
            let x = r.input(&[n], dtype, Fill::Normal(1.0));
            let y = dropout(r, DropRate::new(p), x)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("dropout_1024x256", |r| {
        let x = r.input(&[1024, 256], DType::F32, Fill::Normal(1.0));
        dropout(r, DropRate::new(0.1), x).map(|_| ())
    })]
}
