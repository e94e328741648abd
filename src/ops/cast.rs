//! Change of storage type, and multiplication by a constant.

use super::rows;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// The same numbers in another float type. Too large for f16 is infinite: the gradient norm's flag finds it.
#[derive(Clone, Debug)]
pub struct Cast {
    pub to: DType,
}

/// out = inp * factor.
#[derive(Clone, Debug)]
pub struct Scale {
    pub factor: f32,
}

/// `x` stored as `to`; `x` itself if it is already.
pub fn cast(r: &mut dyn Recorder, to: DType, x: Var) -> Result<Var> {
    if r.spec(x).dtype == to { Ok(x) } else { r.apply1(Cast { to }, &[x]) }
}

/// x * factor.
pub fn scale(r: &mut dyn Recorder, factor: f32, x: Var) -> Result<Var> {
    r.apply1(Scale { factor }, &[x])
}

fn launch(entry: &'static str, form: &'static str, io: &Io, alpha: f32, caps: &Caps) -> Launch {
    let (from, to) = (&io.ins[0], &io.outs[0]);
    let quads = from.elements().div_ceil(4);
    let key = KernelKey::new("elementwise.wgsl", entry).with("FORM", form);
    let key = rows::element_key(key.with("T", from.dtype.wgsl()).with("TO", to.dtype.wgsl()), caps);
    let cost = Cost { flops: from.elements() as f64, bytes: (from.bytes() + to.bytes()) as f64 };
    let immediates = Immediates::new().u32(quads).f32(alpha);
    Launch::new(key, &[Bind::In(0), Bind::Out(0)], immediates, rows::element_grid(quads, caps), cost)
}

fn float(op: &'static str, ins: &[Spec]) -> Result<()> {
    expect_inputs(op, ins, 1)?;
    if ins[0].dtype == DType::U32 || ins[0].elements() == 0 {
        return Err(shape_error(op, ins, "a float tensor expected"));
    }
    Ok(())
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        float(self.name(), ins)?;
        if self.to == DType::U32 {
            return Err(shape_error(self.name(), ins, "floats are cast to floats only"));
        }
        Ok(vec![Spec::new(&ins[0].shape, self.to)])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(launch("elementwise_cast", "cast", io, 1.0, caps).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            let to = b.spec(b.input(0)).dtype;
            b.record(Cast { to }, &[dout], &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![ins[0].data.clone()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::EXACT
    }
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        float(self.name(), ins)?;
        Ok(vec![ins[0].clone()])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        Ok(launch("elementwise_scale", "scale", io, self.factor, caps).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            b.record(self.clone(), &[dout], &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![ins[0].data.iter().map(|x| x * f64::from(self.factor)).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::element(EPS)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in [1usize, 4099] {
        cases.extend(Case::both(format!("scale_{n}"), move |r, dtype| {
            let x = r.input(&[n], dtype, Fill::Normal(10.0));
            let y = scale(r, -0.3, x)?;
            r.seed(y, Fill::Normal(1.0))
        }));
        for from in [DType::F32, DType::F16] {
            let to = if from == DType::F32 { DType::F16 } else { DType::F32 };
            let case = Case::new(format!("cast_{}_to_{}_{n}", from.wgsl(), to.wgsl()), move |r| {
                // Subnormal, ordinary, at and beyond the largest f16.
                let x = r.input(&[n], from, Fill::Values(vec![1.1, -3e-6, 65504.0, 0.0, 70000.0, -1e-5, 1234.567]));
                let y = cast(r, to, x)?;
                r.seed(y, Fill::Normal(1.0))
            });
            cases.push(Case { f16: true, ..case });
        }
    }
    cases
}

pub fn bench_cases() -> Vec<Case> {
    let case = Case::new("cast_1024x1024", |r| {
        let x = r.input(&[1024, 1024], DType::F32, Fill::Normal(1.0));
        cast(r, DType::F16, x).map(|_| ())
    });
    vec![Case { f16: true, ..case }]
}
