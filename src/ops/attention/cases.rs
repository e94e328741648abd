//! Shapes to check and to time.

use super::flash_attention;
use crate::error::Result;
use crate::ops::random::DropRate;
use crate::ops::{Case, CaseRecorder, DType, Fill};

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

/// ELECTRA-Small's discriminator at two lengths, its generator, BERT-base.
pub fn bench_cases() -> Vec<Case> {
    let sizes = [(8, 128, 4, 0.0), (8, 128, 4, 0.1), (4, 512, 4, 0.0), (8, 128, 1, 0.0), (8, 128, 12, 0.0)];
    let case = |(batch, tokens, heads, dropout): (usize, usize, usize, f32)| {
        let shape = Shape { dropout, ..shape(heads, 64, tokens, &vec![tokens; batch]) };
        let name = format!("attention_{batch}x{tokens}x{heads}x64{}", if dropout > 0.0 { "_dropout" } else { "" });
        Case::new(name, move |r| shape.record(r, DType::F32, true))
    };
    sizes.map(case).into()
}
