//! Attention in f64, and how far f32 arithmetic may be from it.
//!
//! Bounds, element by element. A dot product of D terms rounds at each step of its running sum, a random walk of size
//! EPS |a| |b| (Euclidean norms), taken eight times over. exp2 is good to 3 + 2|x| units in the last place (WGSL); its argument
//! carries the score's error and the rounding of score and shift. So a probability has the relative error [`relative`], and
//! a sum of n of them times something has that error of its terms plus the random walk of its own roundings.

use super::{Attention, Sizes};
use crate::gpu::Step;
use crate::ops::{EPS, Host};

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_error(a: &[f64], b: &[f64]) -> f64 {
    8.0 * EPS * norm(a) * norm(b)
}

fn sum_error(n: usize) -> f64 {
    8.0 * (n.max(1) as f64).sqrt() * EPS
}

/// Relative error of exp(score - shift) with a score that is off by `error`.
fn relative(error: f64, score: f64, shift: f64) -> f64 {
    let exponent = std::f64::consts::LOG2_E * (score - shift).abs();
    error + 4.0 * EPS * (score.abs() + shift.abs()) + 2.0 * EPS * (3.0 + 2.0 * exponent)
}

/// One sequence's head.
struct Head<'a> {
    qkv: &'a Host,
    sizes: Sizes,
    batch: usize,
    head: usize,
    len: usize,
}

impl Head<'_> {
    /// Where the head's part of the row of `token` is, in qkv: part 0 q, 1 k, 2 v.
    fn at(&self, token: usize, part: usize) -> std::ops::Range<usize> {
        let Sizes { tokens, heads, head, .. } = self.sizes;
        let start = (self.batch * tokens + token) * 3 * heads * head + (part * heads + self.head) * head;
        start..start + head
    }

    fn row(&self, token: usize, part: usize) -> &[f64] {
        &self.qkv.data[self.at(token, part)]
    }

    /// The same in out and dout.
    fn out_at(&self, token: usize) -> std::ops::Range<usize> {
        let Sizes { tokens, heads, head, .. } = self.sizes;
        let start = ((self.batch * tokens + token) * heads + self.head) * head;
        start..start + head
    }

    /// The query's place in lse.
    fn statistic(&self, token: usize) -> usize {
        (self.batch * self.sizes.heads + self.head) * self.sizes.tokens + token
    }

    fn scale(&self) -> f64 {
        f64::from((1.0 / (self.sizes.head as f64).sqrt()) as f32)
    }

    /// Score and its error.
    fn score(&self, q: usize, k: usize) -> (f64, f64) {
        let (a, b) = (self.row(q, 0), self.row(k, 1));
        (dot(a, b) * self.scale(), dot_error(a, b) * self.scale())
    }

    fn dropout(&self, op: &Attention, step: &Step, q: usize, k: usize) -> f64 {
        op.dropout.map_or(1.0, |(rate, site)| {
            // Kernels count in u32.
            let quad = (self.statistic(q) as u32)
                .wrapping_mul(self.sizes.tokens.div_ceil(4) as u32)
                .wrapping_add(k as u32 / 4);
            rate.factor(step, site, u64::from(quad) * 4 + k as u64 % 4)
        })
    }
}

fn heads<'a>(sizes: &Sizes, qkv: &'a Host, lens: &Host) -> Vec<Head<'a>> {
    let sizes = *sizes;
    let len = |batch| lens.index(batch).min(sizes.tokens);
    let of = |batch| (0..sizes.heads).map(move |head| Head { qkv, sizes, batch, head, len: len(batch) });
    (0..sizes.batch).flat_map(of).collect()
}

type Bounded = (Vec<f64>, Vec<f64>);

/// out and lse, each with its bounds.
pub(super) fn forward(op: &Attention, sizes: &Sizes, ins: &[&Host], step: &Step) -> [Bounded; 2] {
    let n = sizes.rows() * sizes.head;
    let (mut out, mut out_bound) = (vec![0.0; n], vec![0.0; n]);
    let (mut lse, mut lse_bound) = (vec![0.0; sizes.rows()], vec![0.0; sizes.rows()]);
    for head in heads(sizes, ins[0], ins[1]).iter().filter(|h| h.len > 0) {
        for q in 0..sizes.tokens {
            let scores: Vec<(f64, f64)> = (0..head.len).map(|k| head.score(q, k)).collect();
            let top = scores.iter().fold(f64::MIN, |m, s| m.max(s.0));
            let weights: Vec<f64> = scores.iter().map(|s| (s.0 - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let errors: Vec<f64> = scores.iter().map(|&(s, e)| relative(e, s, top)).collect();
            let sum_relative = dot(&weights, &errors) / sum + sum_error(head.len);
            let i = head.statistic(q);
            lse[i] = top + sum.ln();
            // log2 is good to 2^-21 near one and 3 units in the last place elsewhere.
            lse_bound[i] = sum_relative + 0.5f64.powi(20) + 8.0 * EPS * (top.abs() + sum.ln());
            let at = head.out_at(q);
            for (k, (weight, error)) in weights.iter().zip(&errors).enumerate() {
                let p = weight / sum * head.dropout(op, step, q, k);
                let off = p * (error + sum_relative + sum_error(head.len));
                for (x, v) in at.clone().zip(head.row(k, 2)) {
                    out[x] += p * v;
                    out_bound[x] += off * v.abs();
                }
            }
        }
    }
    [(out, out_bound), (lse, lse_bound)]
}

/// dqkv from (qkv, lens, out, lse, dout), with its bounds; these are zero where exact zeros belong.
pub(super) fn backward(op: &Attention, sizes: &Sizes, ins: &[&Host], step: &Step) -> Bounded {
    let (out, lse, dout) = (ins[2], ins[3], ins[4]);
    let n = ins[0].data.len();
    let (mut dqkv, mut bound) = (vec![0.0; n], vec![0.0; n]);
    for head in heads(sizes, ins[0], ins[1]) {
        let scale = head.scale();
        for q in 0..sizes.tokens {
            let (out, dout) = (&out.data[head.out_at(q)], &dout.data[head.out_at(q)]);
            let (delta, delta_error) = (dot(dout, out), dot_error(dout, out));
            let shift = lse.data[head.statistic(q)];
            for k in 0..head.len {
                let (score, score_error) = head.score(q, k);
                let p = (score - shift).exp();
                let p_relative = relative(score_error, score, shift) + sum_error(sizes.tokens);
                let keep = head.dropout(op, step, q, k);
                let dp = keep * dot(dout, head.row(k, 2));
                let dp_error =
                    keep * dot_error(dout, head.row(k, 2)) + delta_error + 8.0 * EPS * (dp.abs() + delta.abs());
                let ds = scale * p * (dp - delta);
                let ds_error = scale * p * (dp_error + (dp - delta).abs() * p_relative);
                let (at_q, at_k, at_v) = (head.at(q, 0), head.at(k, 1), head.at(k, 2));
                for d in 0..sizes.head {
                    let (query, key) = (head.row(q, 0)[d], head.row(k, 1)[d]);
                    dqkv[at_q.start + d] += ds * key;
                    dqkv[at_k.start + d] += ds * query;
                    dqkv[at_v.start + d] += p * keep * dout[d];
                    bound[at_q.start + d] += ds_error * key.abs();
                    bound[at_k.start + d] += ds_error * query.abs();
                    bound[at_v.start + d] += p * keep * dout[d].abs() * p_relative;
                }
            }
        }
    }
    (dqkv, bound)
}
