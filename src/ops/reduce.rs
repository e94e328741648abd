//! Sums of everything and down the columns, and their gradient: one value, or one row, repeated.
//!
//! Other families put the launches of a column sum into their own programs: [`column_launch`], [`column_launches`].

use super::cast::scale;
use super::rows::{self, worst_by};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// out[1] = sum of all elements, f32.
#[derive(Clone, Debug)]
pub struct Sum;

/// out[N] = sum of inp[.., N] over all its rows, f32. The gradient of a bias.
#[derive(Clone, Debug)]
pub struct ColumnSum;

/// out[.., c] = inp[c] for an f32 input as wide as the output, or of one element.
#[derive(Clone, Debug)]
pub struct Broadcast {
    pub shape: Vec<usize>,
    /// Storage of the output.
    pub out: DType,
}

/// The sum of all elements of `x`, [1] f32.
pub fn sum(r: &mut dyn Recorder, x: Var) -> Result<Var> {
    r.apply1(Sum, &[x])
}

/// The mean of all elements of `x`, [1] f32: their sum, so it has to be in range, times 1 / n.
pub fn mean(r: &mut dyn Recorder, x: Var) -> Result<Var> {
    let n = r.spec(x).elements();
    let sum = sum(r, x)?;
    scale(r, (1.0 / n as f64) as f32, sum)
}

/// The sum of `x` [.., N] over its rows, [N] f32.
pub fn column_sum(r: &mut dyn Recorder, x: Var) -> Result<Var> {
    r.apply1(ColumnSum, &[x])
}

/// `x` (f32, one element or one row) repeated to `shape`, stored as `out`.
pub fn broadcast(r: &mut dyn Recorder, x: Var, shape: &[usize], out: DType) -> Result<Var> {
    r.apply1(Broadcast { shape: shape.to_vec(), out }, &[x])
}

/// `out[c] (+)= sum over rows of inp[row, first + c]` with the rows `ld` apart, in one launch: for few rows.
pub(super) fn column_launch(from: (Bind, DType), sizes: [usize; 4], to: Bind, store: Store) -> Launch {
    columns(from, sizes, sizes[0], to, store)
}

/// The same for many rows: sums of `group` rows each into `partial` ([groups, cols] f32), then of those.
pub(super) fn column_launches(
    from: (Bind, DType),
    sizes: [usize; 4],
    group: usize,
    partial: Bind,
    to: Bind,
    store: Store,
) -> Vec<Launch> {
    let [rows, cols, ..] = sizes;
    if rows <= group {
        return vec![column_launch(from, sizes, to, store)];
    }
    let groups = [rows.div_ceil(group), cols, cols, 0];
    vec![columns(from, sizes, group, partial, Store::Write), column_launch((partial, DType::F32), groups, to, store)]
}

/// Sums of `group` rows each.
fn columns(from: (Bind, DType), [rows, cols, ld, first]: [usize; 4], group: usize, to: Bind, store: Store) -> Launch {
    const THREADS: usize = 64;
    let vec = if [cols, ld, first].iter().all(|x| x.is_multiple_of(4)) { 4 } else { 1 };
    let kernel = KernelKey::new("reduce.wgsl", "column_sum")
        .with("FORM", "columns")
        .with("T", from.1.wgsl())
        .with("VEC", vec)
        .with("WG", THREADS);
    let immediates = Immediates::new().u32(rows).u32(cols).u32(ld).u32(first).u32(group).store(store);
    let groups = rows.div_ceil(group);
    let n = (rows * cols) as f64;
    let cost = Cost { flops: n, bytes: n * from.1.bytes() as f64 + (groups * cols * 4) as f64 };
    Launch::new(kernel, &[from.0, to], immediates, [(cols / vec).div_ceil(THREADS) as u32, groups as u32, 1], cost)
}

/// Rows that one invocation sums where there are many: few enough to fill a device, many enough to keep the second
/// pass small, which is over 256 groups at most.
fn row_group(rows: usize) -> usize {
    64.max(rows.div_ceil(256))
}

/// Additions that an element goes through on its way down `rows` rows: a quarter of them and what is left over, two
/// that join the four, one to what is there.
fn row_depth(rows: usize) -> usize {
    rows / 4 + rows % 4 + 3
}

/// Invocations of a workgroup that sums elements.
const LANES: usize = 256;

/// Quads that one workgroup sums: sixteen elements an invocation, or as many as leave the second pass a quad for each.
fn quad_group(quads: usize) -> usize {
    (4 * LANES).max(quads.div_ceil(4 * LANES))
}

/// Additions that an element goes through in a group of `quads`: its invocation's, two across the quad, the tree's,
/// one to what is there.
fn quad_depth(quads: usize) -> usize {
    quads.div_ceil(LANES) + 1 + 2 + LANES.ilog2() as usize + 1
}

/// The sum of all elements of input 0 as output 0.
fn total(spec: &Spec) -> Program {
    let launch = |from, dtype: DType, n: usize, group: usize, to, store: Store| {
        let kernel = KernelKey::new("reduce.wgsl", "total").with("FORM", "total").with("T", dtype.wgsl());
        let immediates = Immediates::new().u32(n).u32(group).store(store);
        let groups = n.div_ceil(4).div_ceil(group);
        let cost = Cost { flops: n as f64, bytes: n as f64 * dtype.bytes() as f64 + 4.0 * groups as f64 };
        let kernel = kernel.with("VEC", 4u32).with("WG", LANES);
        Launch::new(kernel, &[from, to], immediates, [groups as u32, 1, 1], cost)
    };
    let n = spec.elements();
    let quads = n.div_ceil(4);
    let group = quad_group(quads);
    let groups = quads.div_ceil(group);
    let store = Store::Output(0);
    if groups == 1 {
        return launch(Bind::In(0), spec.dtype, n, group, Bind::Out(0), store).into();
    }
    let first = launch(Bind::In(0), spec.dtype, n, group, Bind::Scratch(0), Store::Write);
    let second = launch(Bind::Scratch(0), DType::F32, groups, groups, Bind::Out(0), store);
    Program { launches: vec![first, second], scratch: vec![4 * groups as u64] }
}

fn total_depth(n: usize) -> usize {
    let quads = n.div_ceil(4);
    let group = quad_group(quads);
    let groups = quads.div_ceil(group);
    quad_depth(group.min(quads)) + if groups == 1 { 0 } else { quad_depth(groups.div_ceil(4)) }
}

fn column_depth(spec: &Spec) -> usize {
    let (rows, group) = (spec.rows(), row_group(spec.rows()));
    match spec.width() {
        1 => total_depth(rows),
        _ if rows <= group => row_depth(rows),
        _ => row_depth(group) + row_depth(rows.div_ceil(group)),
    }
}

/// A sum in which no element goes through more than `depth` additions is off by `depth` roundings of the sum of
/// magnitudes at most (Higham, Accuracy and Stability of Numerical Algorithms, 4.2), which for the depths here leaves
/// no room for what random walks would forgive. What it is added to is rounded once.
fn depth_worst(depth: usize, magnitudes: &[f64], spec: &Spec, got: &[f64], want: &[f64]) -> f64 {
    worst_by(|i| EPS * (depth as f64 * magnitudes[i] + want[i].abs()), spec, got, want)
}

fn float(op: &'static str, ins: &[Spec]) -> Result<()> {
    expect_inputs(op, ins, 1)?;
    if ins[0].dtype == DType::U32 || ins[0].elements() == 0 {
        return Err(shape_error(op, ins, "a float tensor expected"));
    }
    Ok(())
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        float(self.name(), ins)?;
        Ok(vec![Spec::f32(&[1])])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, _caps: &Caps) -> Result<Program> {
        Ok(total(&io.ins[0]))
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        broadcast_back(b)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![vec![ins[0].data.iter().sum()]]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].elements())
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let magnitude = ins[0].data.iter().map(|x| x.abs()).sum();
        depth_worst(total_depth(ins[0].data.len()), &[magnitude], &io.outs[k], got, want)
    }
}

impl Op for ColumnSum {
    fn name(&self) -> &'static str {
        "column_sum"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        float(self.name(), ins)?;
        Ok(vec![Spec::f32(&[ins[0].width()])])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, _caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let (rows, cols) = (spec.rows(), spec.width());
        if cols == 1 {
            // A single column would be a single invocation's work.
            return Ok(total(spec));
        }
        let group = row_group(rows);
        let (from, sizes) = ((Bind::In(0), spec.dtype), [rows, cols, cols, 0]);
        let launches = column_launches(from, sizes, group, Bind::Scratch(0), Bind::Out(0), Store::Output(0));
        let scratch = if launches.len() > 1 { vec![(rows.div_ceil(group) * cols * 4) as u64] } else { Vec::new() };
        Ok(Program { launches, scratch })
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        broadcast_back(b)
    }

    fn reference(&self, ins: &[&Host], _io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![host_column_sums(ins[0], |x| x)]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].rows())
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let magnitudes = host_column_sums(ins[0], f64::abs);
        depth_worst(column_depth(&io.ins[0]), &magnitudes, &io.outs[k], got, want)
    }
}

/// The gradient of a sum is the sum's own, for each of its terms.
fn broadcast_back(b: &mut Gradients<'_>) -> Result<Backward> {
    if let Some(dout) = b.dout(0) {
        let Spec { shape, dtype: out } = b.spec(b.input(0)).clone();
        b.record(Broadcast { shape, out }, &[dout], &[(0, 0)])?;
    }
    Ok(Backward::Rule)
}

fn host_column_sums(x: &Host, f: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; x.spec.width()];
    for r in 0..x.spec.rows() {
        sums.iter_mut().zip(x.row(r)).for_each(|(s, &v)| *s += f(v));
    }
    sums
}

impl Op for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 1)?;
        let (out, cols) = (Spec::new(&self.shape, self.out), ins[0].elements());
        if ins[0].dtype != DType::F32 || (cols != 1 && cols != out.width()) || out.elements() == 0 {
            return Err(shape_error(self.name(), ins, format!("one element or {} in f32 expected", out.width())));
        }
        if self.out == DType::U32 {
            return Err(shape_error(self.name(), ins, "floats are repeated as floats only"));
        }
        Ok(vec![out])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        let (out, cols) = (&io.outs[0], io.ins[0].elements());
        let quads = out.elements().div_ceil(4);
        let span = match cols {
            1 => "one",
            _ if cols.is_multiple_of(4) => "quads",
            _ => "any",
        };
        let key = KernelKey::new("elementwise.wgsl", "elementwise_broadcast").with("FORM", "broadcast");
        let key = key.with("SPAN", span).with("T", DType::F32.wgsl()).with("TO", out.dtype.wgsl());
        let cost = Cost { flops: 0.0, bytes: (io.ins[0].bytes() + out.bytes()) as f64 };
        let (bindings, immediates) = ([Bind::In(0), Bind::Out(0)], Immediates::new().u32(quads).u32(cols));
        let grid = rows::element_grid(quads, caps);
        Ok(Launch::new(rows::element_key(key, caps), &bindings, immediates, grid, cost).into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        if let Some(dout) = b.dout(0) {
            if b.spec(b.input(0)).elements() == 1 {
                b.record(Sum, &[dout], &[(0, 0)])?;
            } else {
                b.record(ColumnSum, &[dout], &[(0, 0)])?;
            }
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![ins[0].data.iter().copied().cycle().take(io.outs[0].elements()).collect()]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::EXACT
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // From 4097 elements in two passes.
    for shape in [&[1usize][..], &[2], &[3], &[5], &[7, 13, 5], &[1023], &[4096], &[4097], &[300_007]] {
        cases.extend(Case::both(format!("sum_{shape:?}"), move |r, dtype| {
            let x = r.input(shape, dtype, Fill::Normal(1.0));
            let y = sum(r, x)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    // Workgroups of the first pass go round more often than when they are few. No gradient: this is about the sum.
    cases.extend(Case::both("sum_4300007", |r, dtype| {
        let x = r.input(&[4_300_007], dtype, Fill::Values(vec![1.0, -0.5, 3.0, 0.25, 2.0]));
        sum(r, x).map(|_| ())
    }));
    // From 65 rows in two passes, from 16385 in groups of more than 64 rows; one column is summed as a whole.
    for shape in [
        &[1usize, 1][..],
        &[1, 7],
        &[7, 1],
        &[5003, 1],
        &[3, 4],
        &[2, 1031],
        &[13, 17],
        &[64, 12],
        &[65, 12],
        &[127, 257],
        &[3, 701, 9],
        &[4099, 20],
        &[20_011, 3],
    ] {
        cases.extend(Case::both(format!("column_sum_{shape:?}"), move |r, dtype| {
            let x = r.input(shape, dtype, Fill::Normal(1.0));
            let y = column_sum(r, x)?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    // Sums of f16 beyond what f16 holds, and of its subnormals.
    for (name, wide, half) in [("large", 1e34, 6e4), ("tiny", 1e-30, 3e-7)] {
        cases.extend(Case::both(format!("sums_of_{name}_values"), move |r, dtype| {
            let size = if dtype == DType::F32 { wide } else { half };
            for sum in [sum, column_sum] {
                let x = r.input(&[131, 37], dtype, Fill::Uniform(-0.1 * size, size));
                let y = sum(r, x)?;
                r.seed(y, Fill::Normal(1.0))?;
            }
            Ok(())
        }));
    }
    cases.extend(Case::both("mean_11x37", |r, dtype| {
        let x = r.input(&[11, 37], dtype, Fill::Normal(1.0));
        let y = mean(r, x)?;
        r.seed(y, Fill::Normal(1.0))
    }));
    // The same row twice: the second sum adds to the first, in one pass and in two.
    for (cols, shape) in
        [(1usize, &[1usize][..]), (1, &[7, 11]), (1, &[4099, 3]), (5, &[3, 5]), (8, &[2, 3, 8]), (9, &[2103, 9])]
    {
        cases.extend(Case::both(format!("broadcast_{cols}_to_{shape:?}"), move |r, dtype| {
            let x = r.input(&[cols], DType::F32, Fill::Normal(1.0));
            for out in [dtype, DType::F32] {
                let y = broadcast(r, x, shape, out)?;
                r.seed(y, Fill::Normal(1.0))?;
            }
            Ok(())
        }));
    }
    cases
}

pub fn bench_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [[1024usize, 256], [1024, 1024], [1024, 3072]]
        .map(|[rows, cols]| {
            Case::new(format!("column_sum_{rows}x{cols}"), move |r| {
                let x = r.input(&[rows, cols], DType::F32, Fill::Normal(1.0));
                column_sum(r, x).map(|_| ())
            })
        })
        .into();
    cases.push(Case::new("sum_1024x256", |r| {
        let x = r.input(&[1024, 256], DType::F32, Fill::Normal(1.0));
        let y = sum(r, x)?;
        r.seed(y, Fill::Normal(1.0))
    }));
    cases
}
