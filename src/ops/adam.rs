//! Adam with decoupled weight decay over the flat arenas.

use super::norm::chunk;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// Elements that one entry of the table of tensors stands for.
pub const BLOCK: usize = 128;

/// Inputs weights, grads, moment1, moment2 (arenas), tensor of each block [n / 128] u32, (decay, lr_scale) of each tensor
/// [tensors, 2], the norm's result [4], and the weights' f16 copy if there is one; weights, moments and copy change.
#[derive(Clone, Debug)]
pub struct Adam {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Whether the f16 copy is kept.
    pub half: bool,
}

/// Records the update of all arenas.
pub fn adam(
    r: &mut dyn Recorder,
    op: Adam,
    [weights, grads, moment1, moment2]: [Var; 4],
    [blocks, rates, norm]: [Var; 3],
    half: Option<Var>,
) -> Result<()> {
    let ins: Vec<Var> = [weights, grads, moment1, moment2, blocks, rates, norm].into_iter().chain(half).collect();
    r.apply(Adam { half: half.is_some(), ..op }, &ins).map(|_| ())
}

impl Op for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 7 + usize::from(self.half))?;
        let n = ins[0].elements();
        if ins[..4].iter().any(|s| s.dtype != DType::F32 || s.elements() != n) || !n.is_multiple_of(BLOCK) || n == 0 {
            return Err(shape_error(
                self.name(),
                ins,
                format!("four f32 arenas of one size, a multiple of {BLOCK}, expected"),
            ));
        }
        if ins[4] != Spec::u32(&[n / BLOCK])
            || ins[5].dtype != DType::F32
            || ins[5].width() != 2
            || ins[6] != Spec::f32(&[4])
        {
            return Err(shape_error(self.name(), ins, "a tensor for each block, pairs of rates and the norm expected"));
        }
        if self.half && (ins[7].dtype != DType::F16 || ins[7].elements() != n) {
            return Err(shape_error(self.name(), ins, "an f16 copy of the weights' size expected"));
        }
        let mut outs = vec![ins[0].clone(), ins[2].clone(), ins[3].clone()];
        outs.extend(ins.get(7).cloned());
        Ok(outs)
    }

    fn updates(&self) -> Vec<(usize, usize)> {
        let mut updates = vec![(0, 0), (1, 2), (2, 3)];
        updates.extend(self.half.then_some((3, 7)));
        updates
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        const THREADS: usize = 256;
        let n = io.ins[0].elements();
        let chunk = chunk(caps, BLOCK);
        let mut program = Program::default();
        for first in (0..n).step_by(chunk) {
            let size = chunk.min(n - first);
            let whole = size == n;
            let input = |input: usize| match whole {
                true => Bind::In(input),
                false => Bind::InAt { input, offset: 4 * first as u64, bytes: 4 * size as u64 },
            };
            let output = |output: usize, width: u64| match whole {
                true => Bind::Out(output),
                false => Bind::OutAt { output, offset: width * first as u64, bytes: width * size as u64 },
            };
            let mut bindings =
                vec![output(0, 4), input(1), output(1, 4), output(2, 4), Bind::In(4), Bind::In(5), Bind::In(6)];
            bindings.extend(self.half.then(|| output(3, 2)));
            let key = KernelKey::new("adam.wgsl", "adam").with("HALF", self.half).with("WG", THREADS);
            let key = key.with("STEP_BINDING", bindings.len());
            bindings.push(Bind::Step);
            let immediates = Immediates::new().u32(size / BLOCK).u32(first / BLOCK);
            let immediates = immediates.f32(self.beta1).f32(self.beta2).f32(self.eps);
            let grid = fold_grid((size / 16).div_ceil(THREADS), caps.limits.workgroups_per_dimension);
            let bytes = if self.half { 30.0 } else { 28.0 } * size as f64;
            program.launches.push(Launch::new(
                key,
                &bindings,
                immediates,
                grid,
                Cost { flops: 16.0 * size as f64, bytes },
            ));
        }
        Ok(program)
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("it is the optimiser"))
    }

    fn reference(&self, ins: &[&Host], _io: &Io, step: &Step) -> Vec<Vec<f64>> {
        let mut outs: Vec<Vec<f64>> = [0, 2, 3].map(|i: usize| ins[i].data.clone()).into();
        let norm = &ins[6].data;
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        if norm[2] == 0.0 {
            for i in 0..outs[0].len() {
                let tensor = ins[4].index(i / BLOCK);
                let (decay, lr_scale) = (ins[5].data[2 * tensor], ins[5].data[2 * tensor + 1]);
                let g = ins[1].data[i] * f64::from(step.grad_scale) * norm[1];
                let m = beta1 * outs[1][i] + (1.0 - beta1) * g;
                let v = beta2 * outs[2][i] + (1.0 - beta2) * g * g;
                let deviation = (v / f64::from(step.bias2)).sqrt() + f64::from(self.eps);
                let update = m / f64::from(step.bias1) / deviation + decay * outs[0][i];
                outs[0][i] -= f64::from(step.lr) * lr_scale * update;
                (outs[1][i], outs[2][i]) = (m, v);
            }
        }
        if self.half {
            outs.push(if norm[2] == 0.0 { outs[0].clone() } else { ins[7].data.clone() });
        }
        outs
    }

    fn tolerance(&self, _io: &Io, k: usize) -> Tolerance {
        Tolerance::scale(if k == 2 { 8.0 } else { 16.0 } * EPS)
    }

    // Some ten roundings of an update, and those of the difference that the weight is; 1 - beta2 in f32 keeps three
    // digits less than beta2 itself, 1e-3 having cost it 1000 / 2 half-units: both sides take f32's beta, so only the
    // subtraction's own rounding counts, which is exact.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let g = |i: usize| (ins[1].data[i] * f64::from(step.grad_scale) * ins[6].data[1]).abs();
        let bound = |i: usize| match k {
            1 => 4.0 * EPS * (ins[2].data[i].abs() + g(i)),
            2 => 6.0 * EPS * want[i].abs(),
            _ => {
                // m may be a difference that cancels: its error stays that of its terms.
                let m = 4.0 * EPS * (ins[2].data[i].abs() + g(i)) / f64::from(step.bias1);
                let v = f64::from(self.beta2) * ins[3].data[i] + (1.0 - f64::from(self.beta2)) * g(i).powi(2);
                let deviation = (v / f64::from(step.bias2)).sqrt() + f64::from(self.eps);
                let moved = (want[i] - ins[0].data[i]).abs();
                let scale = (0..ins[5].spec.rows()).fold(0.0f64, |s, t| s.max(ins[5].data[2 * t + 1]));
                2.0 * EPS * want[i].abs() + 16.0 * EPS * moved + f64::from(step.lr) * scale * m / deviation
            }
        };
        rows::worst_by(bound, &io.outs[k], got, want)
    }
}

fn case(name: &'static str, n: usize, half: bool, odd: bool) -> Case {
    let case = Case::new(name, move |r| {
        let arenas = [
            r.input(&[n], DType::F32, Fill::Normal(0.1)),
            r.input(&[n], DType::F32, Fill::Normal(1.0)),
            r.input(&[n], DType::F32, Fill::Normal(0.1)),
            r.input(&[n], DType::F32, Fill::Uniform(0.0, 0.01)),
        ];
        let blocks = r.input(&[n / BLOCK], DType::U32, Fill::Ids(3));
        let rates = r.input(&[3, 2], DType::F32, Fill::Values(vec![0.01, 1.0, 0.0, 0.5, 0.1, 0.0]));
        let norm = r.input(&[4], DType::F32, Fill::Values(vec![2.0, 0.5, f64::from(u8::from(odd)), 4.0]));
        let copy = half.then(|| r.input(&[n], DType::F16, Fill::Const(7.0)));
        let op = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-6, half };
        adam(r, op, arenas, [blocks, rates, norm], copy)
    });
    Case { f16: half, ..case }
}

pub fn cases() -> Vec<Case> {
    vec![
        case("adam_one_block", BLOCK, false, false),
        case("adam_1001_blocks", 1001 * BLOCK, false, false),
        case("adam_with_f16_copy", 33 * BLOCK, true, false),
        case("adam_skips_a_step_that_is_not_finite", 5 * BLOCK, true, true),
    ]
}

pub fn bench_cases() -> Vec<Case> {
    vec![case("adam_14m", 109_375 * BLOCK, false, false)]
}
