//! Global norm of the gradients, with the factor that clips it and a flag for what is not finite.

use super::rows::sum_bound;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// Input grads [n] f32 (an arena); output (norm, clip, not finite, sum of squares), of the gradients times step.grad_scale.
#[derive(Clone, Debug)]
pub struct GlobalNorm {
    /// Gradients are scaled down to this norm; 0 never scales.
    pub max_norm: f32,
}

/// (norm, clip, not finite, sum of squares) of `grads`.
pub fn global_norm(r: &mut dyn Recorder, grads: Var, max_norm: f32) -> Result<Var> {
    r.apply1(GlobalNorm { max_norm }, &[grads])
}

/// Elements of an arena that one binding takes, a multiple of `multiple`.
pub(super) fn chunk(caps: &Caps, multiple: usize) -> usize {
    (caps.limits.binding_bytes as usize / 4 / multiple).max(1) * multiple
}

impl Op for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 1)?;
        if ins[0].dtype != DType::F32 || ins[0].elements() == 0 {
            return Err(shape_error(self.name(), ins, "f32 gradients expected"));
        }
        Ok(vec![Spec::f32(&[4])])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("partials", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        const THREADS: usize = 256;
        let n = io.ins[0].elements();
        let chunk = chunk(caps, 128);
        let mut program = Program::default();
        let mut groups = 0usize;
        for first in (0..n).step_by(chunk) {
            let size = chunk.min(n - first);
            // Two groups of four for each invocation at least, 512 workgroups at most.
            let count = size.div_ceil(THREADS * 8).clamp(1, 512);
            let key = KernelKey::new("norm.wgsl", "norm_partial").with("PASS", "partial").with("WG", THREADS);
            let input = match n <= chunk {
                true => Bind::In(0),
                false => Bind::InAt { input: 0, offset: 4 * first as u64, bytes: 4 * size as u64 },
            };
            let bindings = [input, Bind::Scratch(0), Bind::Step];
            let immediates = Immediates::new().u32(size).u32(groups);
            let cost = Cost { flops: 3.0 * size as f64, bytes: 4.0 * size as f64 };
            let key = key.with("STEP_BINDING", 2u32);
            program.launches.push(Launch::new(key, &bindings, immediates, [count as u32, 1, 1], cost));
            groups += count;
        }
        program.scratch.push(8 * groups as u64);
        let key = KernelKey::new("norm.wgsl", "norm_final").with("PASS", "final").with("WG", THREADS);
        let immediates = Immediates::new().u32(groups).f32(self.max_norm);
        let cost = Cost { flops: groups as f64, bytes: 8.0 * groups as f64 };
        program.launches.push(Launch::new(key, &[Bind::Scratch(0), Bind::Out(0)], immediates, [1, 1, 1], cost));
        Ok(program)
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("it measures gradients"))
    }

    fn reference(&self, ins: &[&Host], _io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let squares: f64 = ins[0].data.iter().map(|g| (g * f64::from(step.grad_scale)).powi(2)).sum();
        let norm = squares.sqrt();
        let max = f64::from(self.max_norm);
        let clip = if max > 0.0 && norm > max { max / norm } else { 1.0 };
        let odd = !(squares as f32).is_finite();
        vec![vec![norm, clip, f64::from(u8::from(odd)), squares]]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::element(sum_bound(io.ins[0].elements(), 1.0) + 4.0 * EPS)
    }

    // Where something is not finite only the flag means anything.
    fn worst(&self, k: usize, _ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        if want[2] != 0.0 || got[2] != 0.0 {
            return if got[2] == want[2] { 0.0 } else { f64::INFINITY };
        }
        worst_ratio(self.tolerance(io, k), &io.outs[k], got, want)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // The last has each invocation of the largest grid go round more than once.
    for n in [1usize, 7, 1024, 4097, 2_500_001] {
        cases.push(Case::new(format!("norm_{n}"), move |r| {
            let g = r.input(&[n], DType::F32, Fill::Normal(3.0));
            global_norm(r, g, 1.0).map(|_| ())
        }));
    }
    cases.push(Case::new("norm_below_the_clip", |r| {
        let g = r.input(&[640], DType::F32, Fill::Normal(1e-4));
        global_norm(r, g, 1.0).map(|_| ())
    }));
    cases.push(Case::new("norm_of_zeros", |r| {
        let g = r.input(&[640], DType::F32, Fill::Const(0.0));
        global_norm(r, g, 1.0).map(|_| ())
    }));
    // A NaN whose lowest bit in f32 is set, and the element that no vector of four holds.
    let payload = f64::from_bits(0x7ff8_0000_2000_0000);
    for (name, odd, place) in [
        ("nan", f64::NAN, 900),
        ("nan_with_payload", payload, 900),
        ("infinity", f64::NEG_INFINITY, 900),
        ("infinity_at_the_end", f64::INFINITY, 996),
        ("squares_too_large", 1e30, 900),
    ] {
        cases.push(Case::new(format!("norm_flags_{name}"), move |r| {
            let values = (0..997).map(|i| if i == place { odd } else { 1.0 }).collect();
            let g = r.input(&[997], DType::F32, Fill::Values(values));
            global_norm(r, g, 1.0).map(|_| ())
        }));
    }
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("norm_14m", |r| {
        let g = r.input(&[14_000_000], DType::F32, Fill::Const(1e-3));
        global_norm(r, g, 1.0).map(|_| ())
    })]
}
