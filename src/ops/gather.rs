//! Rows by index, sums of rows by index (the gradients of tables), and the discriminator's input: ids with sampled ones in
//! place of the masked.

use super::rows::{self, worst_by};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// out[i] = inp[index[i]], rows of the last axis; inputs inp, index.
#[derive(Clone, Debug)]
pub struct GatherRows;

/// out[j] = sum of x[i] over all i with index[i] = j, zero for a j that none has; inputs index, x. The order of additions
/// is that of the rows. Sums are f32 and rounded once to the type of the output.
#[derive(Clone, Debug)]
pub struct ScatterRows {
    /// Of the output; its last axis is as wide as the rows.
    pub shape: Vec<usize>,
    /// Storage of the output.
    pub out: DType,
    /// Index whose row gets nothing (padding).
    pub frozen: Option<u32>,
}

/// Inputs ids [B, T], index, sampled, weights (all [B * M], index into the B * T positions); outputs the ids with sampled
/// ones at the indexed positions of weight > 0, and 1 where that changed the id.
#[derive(Clone, Debug)]
pub struct ReplaceIds;

/// Rows `index` of `x`, all its axes but the last taken as one.
pub fn gather_rows(r: &mut dyn Recorder, x: Var, index: Var) -> Result<Var> {
    r.apply1(GatherRows, &[x, index])
}

/// [rows, C] in the type of `x` [n, C]: each row of `x` added to the row that `index` names. Indices past the end name
/// the last row.
pub fn scatter_rows(r: &mut dyn Recorder, x: Var, index: Var, rows: usize) -> Result<Var> {
    let Spec { shape, dtype: out } = r.spec(x).clone();
    let shape = vec![rows, shape.last().copied().unwrap_or(1)];
    r.apply1(ScatterRows { shape, out, frozen: None }, &[index, x])
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
            b.record(ScatterRows { shape: spec.shape, out: spec.dtype, frozen: None }, &[index, dout], &[(0, 0)])?;
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

/// Sorted entries that one workgroup adds up.
const CHUNK: usize = 32;

impl Op for ScatterRows {
    fn name(&self) -> &'static str {
        "scatter_rows"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 2)?;
        let out = Spec::new(&self.shape, self.out);
        let floats = ins[1].dtype != DType::U32 && self.out != DType::U32;
        if ins[0].dtype != DType::U32 || !floats || ins[1].elements() != ins[0].elements() * out.width() {
            let happened = format!("u32 indices and as many float rows of {} expected", out.width());
            return Err(shape_error(self.name(), ins, happened));
        }
        if ins[1].elements() * out.elements() == 0 {
            return Err(shape_error(self.name(), ins, format!("there is nothing to add to {out}")));
        }
        Ok(vec![out])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("sorted", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        const SORTERS: usize = 64;
        let (n, out) = (io.ins[0].elements(), &io.outs[0]);
        let width = out.width();
        let vec = rows::vector(width);
        let chunks = n.div_ceil(CHUNK);
        let immediates = Immediates::new().u32(n).u32(width / vec).u32(out.rows()).u32(self.frozen.unwrap_or(u32::MAX));
        let file = |entry, pass| KernelKey::new("segment_sum.wgsl", entry).with("PASS", pass);
        let adding = |entry, pass| {
            let key = file(entry, pass).with("T", io.ins[1].dtype.wgsl()).with("TO", out.dtype.wgsl());
            key.with("VEC", vec).with("CHUNK", CHUNK).with("WG", if width / vec > 32 { 64usize } else { 32 })
        };
        let sort = Cost { flops: (n * n) as f64, bytes: 12.0 * n as f64 };
        let sum = Cost { flops: (n * width) as f64, bytes: io.ins[1].bytes() as f64 + 8.0 * (n * width) as f64 };
        let join = Cost { flops: 0.0, bytes: 8.0 * n as f64 };
        let order = Bind::Scratch(0);
        let rank = file("rank", "rank").with("WG", SORTERS);
        let grid = fold_grid(chunks, caps.limits.workgroups_per_dimension);
        let launches = vec![
            rows::fill(Bind::Out(0), out, 0.0, caps).only_when_written(0),
            Launch::new(rank, &[Bind::In(0), order], immediates.clone(), [n.div_ceil(SORTERS) as u32, 1, 1], sort),
            Launch::new(
                adding("chunk", "chunk"),
                &[order, Bind::In(1), Bind::Out(0), Bind::Scratch(1)],
                immediates.clone(),
                grid,
                sum,
            ),
            Launch::new(adding("join", "join"), &[order, Bind::Scratch(1), Bind::Out(0)], immediates, grid, join),
        ];
        Ok(Program { launches, scratch: vec![(n * 8) as u64, (chunks * 2 * width * 4) as u64] })
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        // As a table's gradient it may freeze a row or change the type, and is never differentiated.
        if self.frozen.is_some() || b.spec(b.input(1)).dtype != self.out {
            return Ok(rows::NO_SECOND_ORDER);
        }
        if let Some(dout) = b.dout(0) {
            let index = b.input(0);
            b.record(GatherRows, &[dout, index], &[(0, 1)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![self.sums(ins, io, |x| x)]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].elements())
    }

    // Each element by the sum of what goes into it: an entry goes through the additions of its chunk and, where all
    // entries name one row, a piece of every chunk. That is added to the row once.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let magnitudes = self.sums(ins, io, f64::abs);
        let n = io.ins[0].elements();
        let depth = (n.min(CHUNK) + n.div_ceil(CHUNK)) as f64;
        worst_by(|i| EPS * (depth * magnitudes[i] + 2.0 * want[i].abs()), &io.outs[k], got, want)
    }
}

impl ScatterRows {
    fn sums(&self, ins: &[&Host], io: &Io, f: impl Fn(f64) -> f64) -> Vec<f64> {
        let width = io.outs[0].width();
        let mut out = vec![0.0; io.outs[0].elements()];
        for i in 0..io.ins[0].elements() {
            let j = ins[0].index(i);
            if self.frozen != Some(j as u32) {
                let row = &mut out[j * width..(j + 1) * width];
                row.iter_mut().zip(&ins[1].data[i * width..(i + 1) * width]).for_each(|(t, &x)| *t += f(x));
            }
        }
        out
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
    // Rows that several entries name (all of them in one case, across chunks), that one names, that none names.
    for ([n, width, rows], index) in [
        ([1usize, 1usize, 1usize], vec![0.0]),
        ([1, 8, 9], vec![8.0]),
        ([7, 12, 11], vec![3.0, 10.0, 3.0]),
        ([40, 15, 5], vec![4.0, 0.0, 2.0, 2.0]),
        ([257, 20, 500], vec![499.0, 0.0, 3.0, 3.0, 7.0]),
        ([131, 260, 3], vec![1.0]),
    ] {
        cases.extend(Case::both(format!("scatter_rows_{n}x{width}_to_{rows}"), move |r, dtype| {
            let x = r.input(&[n, width], dtype, Fill::Normal(1.0));
            let index = r.input(&[n], DType::U32, Fill::Values(index.clone()));
            let y = scatter_rows(r, x, index, rows)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    for (name, wide, half) in [("large", 1e34, 1e3), ("tiny", 1e-30, 3e-7)] {
        cases.extend(Case::both(format!("scatter_rows_of_{name}_values"), move |r, dtype| {
            let size = if dtype == DType::F32 { wide } else { half };
            let x = r.input(&[101, 13], dtype, Fill::Normal(size));
            let index = r.input(&[101], DType::U32, Fill::Ids(17));
            let y = scatter_rows(r, x, index, 17)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    // Half way the sums are far beyond f16, in the end they are not.
    cases.extend(Case::both("scatter_rows_that_cancel", |r, dtype| {
        let rows = (0..67).flat_map(|i| [if i < 34 { 6e4 } else { -6e4 }; 5]).collect();
        let x = r.input(&[67, 5], dtype, Fill::Values(rows));
        let index = r.input(&[67], DType::U32, Fill::Const(1.0));
        let y = scatter_rows(r, x, index, 2)?;
        r.seed(y, Fill::Normal(1.0))
    }));
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
