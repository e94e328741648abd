//! Rows by index, and the discriminator's input: ids with sampled ones in place of the masked.

use super::embedding::TableGrad;
use super::rows;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// out[i] = inp[index[i]], rows of the last axis; inputs inp, index.
#[derive(Clone, Debug)]
pub struct GatherRows;

/// Inputs ids [B, T], index, sampled, weights (all [B * M], index into the B * T positions); outputs the ids with sampled
/// ones at the indexed positions of weight > 0, and 1 where that changed the id.
#[derive(Clone, Debug)]
pub struct ReplaceIds;

/// Rows `index` of `x`, all its axes but the last taken as one.
pub fn gather_rows(r: &mut dyn Recorder, x: Var, index: Var) -> Result<Var> {
    r.apply1(GatherRows, &[x, index])
}

/// (ids with `sampled` at `index`, 1 where they now differ).
pub fn replace_ids(r: &mut dyn Recorder, ids: Var, index: Var, sampled: Var, weights: Var) -> Result<[Var; 2]> {
    let outs = r.apply(ReplaceIds, &[ids, index, sampled, weights])?;
    Ok([outs[0], outs[1]])
}

impl Op for GatherRows {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 2)?;
        if ins[0].dtype == DType::U32 || ins[1].dtype != DType::U32 || ins[0].elements() * ins[1].elements() == 0 {
            return Err(shape_error(self.name(), ins, "a float tensor and u32 indices expected"));
        }
        Ok(vec![Spec::new(&[ins[1].elements(), ins[0].width()], ins[0].dtype)])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        let out = &io.outs[0];
        let vec = rows::vector(out.width());
        let pieces = out.elements() / vec;
        let key = KernelKey::new("gather.wgsl", "gather_rows").with("PASS", "rows").with("T", out.dtype.wgsl());
        let key = rows::element_key(key.with("VEC", vec).with("PIECES", out.width() / vec), caps);
        let immediates = Immediates::new().u32(pieces).u32(io.ins[0].rows());
        let cost = Cost { flops: 0.0, bytes: 2.0 * out.bytes() as f64 };
        let bindings = [Bind::In(0), Bind::In(1), Bind::Out(0)];
        Ok(Launch::new(key, &bindings, immediates, rows::element_grid(pieces, caps), cost).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            let (spec, index) = (b.spec(b.input(0)).clone(), b.input(1));
            b.record(TableGrad { shape: spec.shape, out: spec.dtype, frozen: None }, &[index, dout], &[(0, 0)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![(0..ins[1].data.len()).flat_map(|i| ins[0].row(ins[1].index(i)).to_vec()).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::EXACT
    }
}

impl Op for ReplaceIds {
    fn name(&self) -> &'static str {
        "replace_ids"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 4)?;
        let n = ins[1].elements();
        let ids = ins[..3].iter().all(|s| s.dtype == DType::U32) && ins[3].dtype == DType::F32;
        if !ids || ins[2].elements() != n || ins[3].elements() != n || ins[0].elements() == 0 || n == 0 {
            return Err(shape_error(self.name(), ins, "ids [B, T] and index, sampled, weights [B * M] expected"));
        }
        if !n.is_multiple_of(ins[0].rows()) {
            return Err(shape_error(
                self.name(),
                ins,
                format!("{n} entries are not as many for each of {} rows", ins[0].rows()),
            ));
        }
        Ok(vec![ins[0].clone(), ins[0].clone()])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("search", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        const THREADS: usize = 64;
        let ids = &io.ins[0];
        let per = io.ins[1].elements() / ids.rows();
        let key = KernelKey::new("gather.wgsl", "replace_ids").with("PASS", "replace").with("WG", THREADS);
        let immediates = Immediates::new().u32(ids.elements()).u32(ids.width()).u32(per);
        let bindings = [Bind::In(0), Bind::In(1), Bind::In(2), Bind::In(3), Bind::Out(0), Bind::Out(1)];
        let grid = fold_grid(ids.elements().div_ceil(THREADS), caps.limits.workgroups_per_dimension);
        let cost =
            Cost { flops: (ids.elements() * per) as f64, bytes: 12.0 * (ids.elements() + io.ins[1].elements()) as f64 };
        Ok(Launch::new(key, &bindings, immediates, grid, cost).into())
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(Backward::Stop("sampled ids have no gradient: the generator learns from its own loss only"))
    }

    fn reference(&self, ins: &[&Host], io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let mut now = ins[0].data.clone();
        let (length, per) = (io.ins[0].width(), io.ins[1].elements() / io.ins[0].rows());
        for m in 0..io.ins[1].elements() {
            let row = ins[1].index(m);
            // An entry speaks of its own example only.
            if ins[3].data[m] > 0.0 && row / length == m / per {
                now[row] = ins[2].data[m];
            }
        }
        let changed = now.iter().zip(&ins[0].data).map(|(a, b)| f64::from(u8::from(a != b))).collect();
        vec![now, changed]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::EXACT
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, width, n) in [(1usize, 1usize, 1usize), (7, 12, 3), (5, 15, 40), (64, 64, 19), (300, 132, 77)] {
        // Some rows are named several times, some never.
        cases.extend(Case::both(format!("gather_rows_{n}_of_{rows}x{width}"), move |r, dtype| {
            let x = r.input(&[rows, width], dtype, Fill::Normal(1.0));
            let index = r.input(&[n], DType::U32, Fill::Ids(rows));
            let y = gather_rows(r, x, index)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    for (batch, length, per) in [(1usize, 1usize, 1usize), (3, 17, 4), (8, 64, 10)] {
        cases.push(Case::new(format!("gather_replace_ids_{batch}x{length}"), move |r| {
            let ids = r.input(&[batch, length], DType::U32, Fill::Ids(5));
            // Positions that repeat, with weights of 0 and 1.
            let index = (0..batch * per).map(|m| (m / per * length + (m * 7 + m / 3) % length) as f64).collect();
            let index = r.input(&[batch * per], DType::U32, Fill::Values(index));
            let sampled = r.input(&[batch * per], DType::U32, Fill::Ids(5));
            let weights = r.input(&[batch * per], DType::F32, Fill::Values(vec![1.0, 1.0, 0.0]));
            replace_ids(r, ids, index, sampled, weights).map(|_| ())
        }));
    }
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("gather_160_of_1024x256", |r| {
        let x = r.input(&[1024, 256], DType::F32, Fill::Normal(1.0));
        let index = r.input(&[160], DType::U32, Fill::Ids(1024));
        let y = gather_rows(r, x, index)?;
        r.seed(y, Fill::Normal(1.0))
    })]
}
