//! Shapes to check and to time.

use super::flash_attention;
use crate::error::Result;
use crate::ops::gemm::{Gemm, Layout};
use crate::ops::random::DropRate;
use crate::ops::softmax::softmax;
use crate::ops::{Case, CaseRecorder, DType, Fill, Recorder};

#[derive(Clone)]
struct Shape {
    tokens: usize,
    heads: usize,
    head: usize,
    lens: Vec<usize>,
    dropout: f32,
    spread: f64,
}

impl Shape {
    fn record(&self, r: &mut dyn CaseRecorder, dtype: DType, seed: bool) -> Result<()> {
        let batch = self.lens.len();
        let qkv = r.input(&[batch * self.tokens, 3 * self.heads * self.head], dtype, Fill::Normal(self.spread));
        let lens = self.lens.iter().map(|&l| l as f64).collect();
        let lens = r.input(&[batch], DType::U32, Fill::Values(lens));
        let out = flash_attention(r, qkv, lens, self.heads, Some(DropRate::new(self.dropout)))?;
        if seed { r.seed(out, Fill::Normal(1.0)) } else { Ok(()) }
    }
}

fn shape(heads: usize, head: usize, tokens: usize, lens: &[usize]) -> Shape {
    Shape { tokens, heads, head, lens: lens.to_vec(), dropout: 0.0, spread: 1.0 }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut both = |name: &str, shape: Shape| {
        cases.extend(Case::both(format!("attention_{name}"), move |r, dtype| shape.record(r, dtype, true)));
    };
    both("of_one_token", shape(1, 4, 1, &[1]));
    both("head_12_ragged_lengths", shape(2, 12, 37, &[37, 23, 0, 1]));
    both("head_33_dropout", Shape { dropout: 0.1, ..shape(3, 33, 50, &[50, 7]) });
    both("head_64", shape(1, 64, 40, &[40, 33]));
    let mut single = |name: &str, shape: Shape| {
        cases.push(Case::new(format!("attention_{name}"), move |r| shape.record(r, DType::F32, true)));
    };
    single("head_12_large_scores", Shape { spread: 6.0, ..shape(2, 12, 37, &[37, 36, 32, 31]) });
    single("head_12_many_heads", shape(11, 12, 70, &[70, 0, 65]));
    single("head_64_dropout_130_tokens", Shape { dropout: 0.1, ..shape(2, 64, 130, &[130]) });
    single("head_128", shape(1, 128, 21, &[21, 17]));
    // More workgroups than one dimension of a grid holds.
    single("70000_sequences_of_one_token", shape(1, 4, 1, &[1; 70_000]));
    cases
}

/// The way that fused attention has to beat: scores, softmax and their product with v as three kernels, with the heads
/// already laid out apart and the T x T matrix in memory.
fn three_kernels(r: &mut dyn CaseRecorder, sequences: usize, tokens: usize, head: usize) -> Result<()> {
    let [q, k, v] = [(); 3].map(|()| r.input(&[sequences, tokens, head], DType::F32, Fill::Normal(1.0)));
    let alpha = 1.0 / (head as f32).sqrt();
    let scores = Gemm { batched: true, alpha, ..Gemm::new(Layout::Nt, DType::F32) };
    let scores = (r as &mut dyn Recorder).apply1(scores, &[q, k])?;
    let probabilities = softmax(r, scores)?;
    let product = Gemm { batched: true, ..Gemm::new(Layout::Nn, DType::F32) };
    (r as &mut dyn Recorder).apply1(product, &[probabilities, v]).map(|_| ())
}

/// ELECTRA-Small's discriminator at two lengths, beside the three-kernel way; its generator; BERT-base.
pub fn bench_cases() -> Vec<Case> {
    let sizes = [(8, 128, 4, 0.0), (8, 128, 4, 0.1), (4, 512, 4, 0.0), (8, 128, 1, 0.0), (8, 128, 12, 0.0)];
    let case = |(batch, tokens, heads, dropout): (usize, usize, usize, f32)| {
        let shape = Shape { dropout, ..shape(heads, 64, tokens, &vec![tokens; batch]) };
        let name = format!("attention_{batch}x{tokens}x{heads}x64{}", if dropout > 0.0 { "_dropout" } else { "" });
        Case::new(name, move |r| shape.record(r, DType::F32, true))
    };
    let unfused = |(batch, tokens, heads): (usize, usize, usize)| {
        let name = format!("attention_{batch}x{tokens}x{heads}x64_three_kernels");
        Case::new(name, move |r| three_kernels(r, batch * heads, tokens, 64))
    };
    sizes.into_iter().map(case).chain([(8, 128, 4), (4, 512, 4)].map(unfused)).collect()
}
