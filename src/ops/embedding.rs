//! Embeddings: the sum of token, position and segment rows, and the gradient of the position table.

use super::gather::ScatterRows;
use super::rows::{self, sum_bound, worst_by};
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, KernelKey, Step};

/// out[b, t] = tokens[ids[b, t]] + positions[t] + segments[kinds[b, t]]; inputs ids, tokens, positions, kinds, segments.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Storage of the output.
    pub out: DType,
    /// Id whose row gets no gradient (padding).
    pub frozen: Option<u32>,
}

/// positions[t] = sum over b of dout[b, t]; zero past the length.
#[derive(Clone, Debug)]
pub struct PositionGrad {
    pub rows: usize,
}

/// Token, position and segment embeddings of ids [B, T] as [B, T, E] in storage `out`.
pub fn embedding(
    r: &mut dyn Recorder,
    [ids, kinds]: [Var; 2],
    [tokens, positions, segments]: [Var; 3],
    out: DType,
    frozen: Option<u32>,
) -> Result<Var> {
    r.apply1(Embedding { out, frozen }, &[ids, tokens, positions, kinds, segments])
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 5)?;
        let width = ins[1].width();
        let table = |s: &Spec| s.dtype == DType::F32 && s.shape.len() == 2 && s.width() == width && s.elements() > 0;
        if ins[0].dtype != DType::U32 || ins[0].elements() == 0 || ins[3] != ins[0] {
            return Err(shape_error(self.name(), ins, "ids and segment ids u32 of one shape expected"));
        }
        if ![1, 2, 4].iter().all(|&i| table(&ins[i])) || self.out == DType::U32 {
            return Err(shape_error(self.name(), ins, "three f32 tables of one width expected"));
        }
        if ins[0].width() > ins[2].rows() {
            return Err(shape_error(
                self.name(),
                ins,
                format!("sequences are longer than {} positions", ins[2].rows()),
            ));
        }
        let shape = [&ins[0].shape[..], &[width]].concat();
        Ok(vec![Spec::new(&shape, self.out)])
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("vec4", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        let out = &io.outs[0];
        let vec = rows::vector(out.width());
        let pieces = out.elements() / vec;
        let key = KernelKey::new("embedding.wgsl", "embedding")
            .with("T", out.dtype.wgsl())
            .with("VEC", vec)
            .with("PIECES", out.width() / vec)
            .with("POSITIONS", 1u32)
            .with("SEGMENTS", 1u32);
        let immediates =
            Immediates::new().u32(pieces).u32(io.ins[0].width()).u32(io.ins[1].rows()).u32(io.ins[4].rows());
        let bindings = [Bind::In(0), Bind::In(1), Bind::Out(0), Bind::In(2), Bind::In(3), Bind::In(4)];
        let n = out.elements() as f64;
        let cost = Cost { flops: 2.0 * n, bytes: 4.0 * n + out.bytes() as f64 };
        Ok(Launch::new(rows::element_key(key, caps), &bindings, immediates, rows::element_grid(pieces, caps), cost)
            .into())
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        let Some(dout) = b.dout(0) else { return Ok(Backward::Rule) };
        for (ids, table, frozen) in [(0, 1, self.frozen), (3, 4, None)] {
            if b.wants(table) {
                let (ids, shape) = (b.input(ids), b.spec(b.input(table)).shape.clone());
                b.record(ScatterRows { shape, out: DType::F32, frozen }, &[ids, dout], &[(0, table)])?;
            }
        }
        if b.wants(2) {
            let rows = b.spec(b.input(2)).rows();
            b.record(PositionGrad { rows }, &[dout], &[(0, 2)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let length = io.ins[0].width();
        let mut out = Vec::with_capacity(io.outs[0].elements());
        for r in 0..io.ins[0].elements() {
            let (token, position) = (ins[1].row(ins[0].index(r)), ins[2].row(r % length));
            let segment = ins[4].row(ins[3].index(r));
            out.extend(token.iter().zip(position).zip(segment).map(|((t, p), s)| t + p + s));
        }
        vec![out]
    }

    fn tolerance(&self, _io: &Io, _k: usize) -> Tolerance {
        Tolerance::scale(3.0 * EPS)
    }
}

impl Op for PositionGrad {
    fn name(&self) -> &'static str {
        "position_grad"
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        expect_inputs(self.name(), ins, 1)?;
        let rank = ins[0].shape.len();
        if rank < 2 || ins[0].dtype == DType::U32 || ins[0].shape[rank - 2] > self.rows {
            return Err(shape_error(self.name(), ins, format!("[.., T, E] with T of at most {} expected", self.rows)));
        }
        Ok(vec![Spec::f32(&[self.rows, ins[0].width()])])
    }

    fn accumulates(&self, _k: usize) -> bool {
        true
    }

    fn variants(&self, _io: &Io, _caps: &Caps) -> Vec<Variant> {
        vec![Variant::new("columns", &[])]
    }

    fn program(&self, io: &Io, _variant: &Variant, caps: &Caps) -> Result<Program> {
        let spec = &io.ins[0];
        let cols = spec.shape[spec.shape.len() - 2] * spec.width();
        let from = (Bind::In(0), spec.dtype);
        let sum = reduce::column_launch(from, [spec.elements() / cols, cols, cols, 0], Bind::Out(0), Store::Add);
        let zero = rows::fill(Bind::Out(0), &io.outs[0], 0.0, caps).only_when_written(0);
        Ok(Program { launches: vec![zero, sum], scratch: Vec::new() })
    }

    fn backward(&self, _b: &mut Gradients<'_>) -> Result<Backward> {
        Ok(rows::NO_SECOND_ORDER)
    }

    fn reference(&self, ins: &[&Host], io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        vec![self.sums(ins, io, |x| x)]
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(io.ins[0].rows())
    }

    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let magnitudes = self.sums(ins, io, f64::abs);
        worst_by(|i| sum_bound(io.ins[0].rows(), magnitudes[i]) + 2.0 * EPS * want[i].abs(), &io.outs[k], got, want)
    }
}

impl PositionGrad {
    fn sums(&self, ins: &[&Host], io: &Io, f: impl Fn(f64) -> f64) -> Vec<f64> {
        let spec = &io.ins[0];
        let cols = spec.shape[spec.shape.len() - 2] * spec.width();
        let mut sums = vec![0.0; io.outs[0].elements()];
        ins[0].data.iter().enumerate().for_each(|(i, &x)| sums[i % cols] += f(x));
        sums
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for ([batch, length, width, vocabulary], frozen) in [
        ([1usize, 1, 4, 3], None),
        ([3, 17, 24, 11], Some(0)),
        ([2, 13, 15, 5], None),
        ([4, 33, 260, 300], None),
        ([8, 64, 128, 7], Some(6)),
        ([5, 7, 12, 1], None),
    ] {
        cases.extend(Case::both(format!("embedding_{batch}x{length}x{width}_of_{vocabulary}"), move |r, dtype| {
            let ids = r.input(&[batch, length], DType::U32, Fill::Ids(vocabulary));
            let kinds = r.input(&[batch, length], DType::U32, Fill::Ids(2));
            let tokens = r.input(&[vocabulary, width], DType::F32, Fill::Normal(1.0));
            let positions = r.input(&[length + 2, width], DType::F32, Fill::Normal(1.0));
            let segments = r.input(&[2, width], DType::F32, Fill::Normal(1.0));
            let y = embedding(r, [ids, kinds], [tokens, positions, segments], dtype, frozen)?;
            // With a frozen row the gradient is not the derivative there, by intent: forward only.
            if frozen.is_none() || dtype == DType::F16 { r.seed(y, Fill::Normal(1.0)) } else { Ok(()) }
        }));
    }
    // The same table read twice: two contributions to one gradient.
    cases.push(Case::new("embedding_table_read_twice", |r| {
        let ids = r.input(&[2, 9], DType::U32, Fill::Ids(7));
        let kinds = r.input(&[2, 9], DType::U32, Fill::Const(0.0));
        let [tokens, positions, segments] = [7, 9, 2].map(|n| r.input(&[n, 8], DType::F32, Fill::Normal(1.0)));
        for _ in 0..2 {
            let y = embedding(r, [ids, kinds], [tokens, positions, segments], DType::F32, None)?;
            r.seed(y, Fill::Normal(1.0))?;
        }
        Ok(())
    }));
    cases
}

pub fn bench_cases() -> Vec<Case> {
    vec![Case::new("embedding_8x128x128_of_32000", |r| {
        let ids = r.input(&[8, 128], DType::U32, Fill::Ids(32_000));
        let kinds = r.input(&[8, 128], DType::U32, Fill::Ids(2));
        let [tokens, positions, segments] = [32_000, 512, 2].map(|n| r.input(&[n, 128], DType::F32, Fill::Normal(1.0)));
        let y = embedding(r, [ids, kinds], [tokens, positions, segments], DType::F32, None)?;
        r.seed(y, Fill::Normal(1.0))
    })]
}
