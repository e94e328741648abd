//! Cases of the family.

use super::*;

/// Operand shapes of an M x N x K product.
fn shapes(layout: Layout, [m, n, k]: [usize; 3], batch: Option<usize>) -> [Vec<usize>; 2] {
    let a = if layout == Layout::Tn { [k, m] } else { [m, k] };
    let b = if layout == Layout::Nt { [n, k] } else { [k, n] };
    let with = |matrix: [usize; 2]| batch.into_iter().chain(matrix).collect();
    [with(a), with(b)]
}

fn product(r: &mut dyn CaseRecorder, op: Gemm, [a, b]: [Vec<usize>; 2], dtype: DType) -> Result<()> {
    let a = r.input(&a, dtype, Fill::Normal(1.0));
    let b = r.input(&b, dtype, Fill::Normal(1.0));
    let c = r.record(Box::new(op), &[a, b], &[])?[0];
    r.seed(c, Fill::Normal(1.0))
}

fn name(layout: Layout) -> &'static str {
    match layout {
        Layout::Nn => "nn",
        Layout::Nt => "nt",
        Layout::Tn => "tn",
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // One element; primes below and above a tile; aligned with full and partial tiles. Backward runs the other layouts.
    for (layout, sizes) in [
        (Layout::Nt, &[[1usize, 1, 1], [7, 5, 3], [40, 132, 36], [131, 67, 129]][..]),
        (Layout::Nn, &[[17, 3, 66], [33, 68, 20]]),
        (Layout::Tn, &[[13, 29, 37], [36, 20, 68]]),
    ] {
        for &size in sizes {
            let [m, n, k] = size;
            cases.extend(Case::both(format!("gemm_{}_{m}x{n}x{k}", name(layout)), move |r, dtype| {
                product(r, Gemm::new(layout, dtype), shapes(layout, size, None), dtype)
            }));
        }
    }
    // Large enough for the kernels that are slow to compile to be worth it, and for every size of tile.
    cases.push(Case::new("gemm_nt_200x168x132", |r| {
        product(r, Gemm::new(Layout::Nt, DType::F32), shapes(Layout::Nt, [200, 168, 132], None), DType::F32)
    }));
    // A batch whose entries are not aligned to a vector, and one whose are; with a factor.
    for layout in [Layout::Nn, Layout::Nt, Layout::Tn] {
        for size in [[9usize, 12, 4], [5, 7, 3]] {
            let op = Gemm { batched: true, alpha: 0.125, ..Gemm::new(layout, DType::F32) };
            cases.push(Case::new(
                format!("gemm_{}_batch_3_of_{}x{}x{}", name(layout), size[0], size[1], size[2]),
                move |r| product(r, op.clone(), shapes(layout, size, Some(3)), DType::F32),
            ));
        }
    }
    // Few tiles and a long K: cut into parts, the last one short.
    cases.push(Case::new("gemm_tn_long_k_is_cut", |r| {
        product(r, Gemm::new(Layout::Tn, DType::F32), shapes(Layout::Tn, [6, 8, 1501], None), DType::F32)
    }));
    // Rows walked down on a CPU: in parts of 512, side by side and, with many tiles, one after the other.
    cases.push(Case::new("gemm_tn_1700_rows_side_by_side", |r| {
        product(r, Gemm::new(Layout::Tn, DType::F32), shapes(Layout::Tn, [20, 12, 1700], None), DType::F32)
    }));
    cases.push(Case::new("gemm_nn_1537_rows_one_after_the_other", |r| {
        let a = r.input(&[65, 1537], DType::F32, Fill::Normal(1.0));
        let b = r.input(&[1537, 260], DType::F32, Fill::Normal(1.0));
        r.record(Box::new(Gemm::new(Layout::Nn, DType::F32)), &[a, b], &[]).map(|_| ())
    }));
    cases.push(Case::new("gemm_nn_long_k_is_cut_ragged", |r| {
        product(r, Gemm::new(Layout::Nn, DType::F32), shapes(Layout::Nn, [5, 7, 1030], None), DType::F32)
    }));
    // Terms of 1e6 that cancel: each element has to stay within its own bound.
    cases.push(Case::new("gemm_nt_cancelling_terms", |r| {
        let a = r.input(&[3, 8], DType::F32, Fill::Values(vec![1e6, 1.0, -1e6, 2.0]));
        let b = r.input(&[2, 8], DType::F32, Fill::Values(vec![1.0, 0.5, 1.0, -0.25]));
        let c = r.record(Box::new(Gemm::new(Layout::Nt, DType::F32)), &[a, b], &[])?[0];
        r.seed(c, Fill::Normal(1.0))
    }));
    for (rows, inputs, outputs) in [(1usize, 5usize, 3usize), (10, 20, 12), (70, 33, 18)] {
        cases.extend(Case::both(format!("linear_{rows}x{inputs}_to_{outputs}"), move |r, dtype| {
            let x = r.input(&[2, rows, inputs], dtype, Fill::Normal(1.0));
            let w = r.input(&[outputs, inputs], dtype, Fill::Normal(0.3));
            let bias = r.input(&[outputs], DType::F32, Fill::Normal(1.0));
            let y = linear(r, x, w, Some(bias))?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    // Two uses of one weight: the second adds to the gradient of the first.
    cases.push(Case::new("linear_weight_used_twice", |r| {
        let x = r.input(&[6, 16], DType::F32, Fill::Normal(1.0));
        let w = r.input(&[16, 16], DType::F32, Fill::Normal(0.3));
        let h = linear(r, x, w, None)?;
        let y = linear(r, h, w, None)?;
        r.seed(y, Fill::Normal(1.0))
    }));
    for (gelu, rows, width, hidden) in [(Gelu::Erf, 19usize, 12usize, 40usize), (Gelu::Tanh, 9, 7, 13)] {
        cases.extend(Case::both(format!("ffn_{gelu:?}_{rows}x{width}x{hidden}").to_lowercase(), move |r, dtype| {
            block(r, gelu, [rows, width, hidden], dtype)
        }));
    }
    // Two column sums into one bias gradient.
    cases.push(Case::new("linear_bias_used_twice", |r| {
        let [x, w] = [[70, 16], [16, 16]].map(|shape| r.input(&shape, DType::F32, Fill::Normal(0.3)));
        let bias = r.input(&[16], DType::F32, Fill::Normal(1.0));
        let h = linear(r, x, w, Some(bias))?;
        let y = linear(r, h, w, Some(bias))?;
        r.seed(y, Fill::Normal(1.0))
    }));
    cases
}

fn block(r: &mut dyn CaseRecorder, gelu: Gelu, [rows, width, hidden]: [usize; 3], dtype: DType) -> Result<()> {
    let x = r.input(&[rows, width], dtype, Fill::Normal(1.0));
    let scale = |n: usize| Fill::Normal(1.0 / (n as f64).sqrt());
    let w1 = r.input(&[hidden, width], dtype, scale(width));
    let b1 = r.input(&[hidden], DType::F32, Fill::Normal(1.0));
    let w2 = r.input(&[width, hidden], dtype, scale(hidden));
    let b2 = r.input(&[width], DType::F32, Fill::Normal(1.0));
    let y = ffn(r, gelu, x, [w1, b1, w2, b2])?;
    r.seed(y, Fill::Normal(1.0))
}

pub fn bench_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // Plain products at 4096 and 2048 tokens: the numbers that engines are compared by.
    for [m, n, k] in [[4096, 1024, 256], [4096, 256, 1024], [2048, 768, 768], [2048, 3072, 768]] {
        cases.extend(Case::both(format!("gemm_nt_{m}x{n}x{k}"), move |r, dtype| {
            let a = r.input(&[m, k], dtype, Fill::Normal(1.0));
            let b = r.input(&[n, k], dtype, Fill::Normal(1.0));
            (r as &mut dyn Recorder).apply1(Gemm::new(Layout::Nt, dtype), &[a, b]).map(|_| ())
        }));
    }
    // Projections of ELECTRA-Small (generator, discriminator) and BERT-base at 8 x 128 tokens, and its logits.
    for [m, n, k] in
        [[1024, 64, 64], [1024, 256, 64], [1024, 256, 256], [1024, 768, 256], [1024, 768, 768], [160, 32_000, 128]]
    {
        cases.push(Case::new(format!("linear_{m}x{n}x{k}"), move |r| {
            let x = r.input(&[m, k], DType::F32, Fill::Normal(1.0));
            let w = r.input(&[n, k], DType::F32, Fill::Normal(0.05));
            let bias = r.input(&[n], DType::F32, Fill::Normal(1.0));
            let y = linear(r, x, w, Some(bias))?;
            r.seed(y, Fill::Normal(1.0))
        }));
    }
    for [width, hidden] in [[64usize, 256usize], [256, 1024], [768, 3072]] {
        cases.push(Case::new(format!("ffn_1024x{width}x{hidden}"), move |r| {
            block(r, Gelu::Erf, [1024, width, hidden], DType::F32)
        }));
    }
    cases
}
