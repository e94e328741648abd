//! Matrix products: `gemm_nn`, `gemm_nt`, `gemm_tn`, the linear layer and the feed-forward block built from them.
//!
//! [`Product::launch`] gives the launches of a single product to other ops that contain one (vocabulary heads).

mod cases;
mod gelu;
mod linear;
mod product;
mod variants;

pub use cases::{bench_cases, cases};
pub use gelu::Gelu;
pub use linear::{Ffn, ffn, linear};
pub use product::{Epilogue, Layout, Operands, Product};
pub use variants::variants;

use super::reduce::ColumnSum;
use super::*;
use crate::error::Result;
use crate::gpu::{Caps, Step};

/// c = alpha op(a) op(b), then the epilogue. Inputs a, b, and bias or pre as the epilogue asks.
#[derive(Clone, Debug)]
pub struct Gemm {
    pub layout: Layout,
    /// All axes but the last two are a batch that both operands have; otherwise they are rows.
    pub batched: bool,
    pub alpha: f32,
    pub epilogue: Epilogue,
    /// Type of c.
    pub out: DType,
    /// b is a parameter: its gradient is f32 whatever its own type.
    pub weight: bool,
}

impl Gemm {
    /// A plain product with an output of type `out`.
    pub fn new(layout: Layout, out: DType) -> Gemm {
        Gemm { layout, batched: false, alpha: 1.0, epilogue: Epilogue::None, out, weight: false }
    }

    fn product(&self, a: &Spec, b: &Spec) -> Option<Product> {
        let matrix = |s: &Spec| {
            let rank = s.shape.len();
            if rank < 2 || s.dtype == DType::U32 || s.elements() == 0 {
                return None;
            }
            let batch: usize = if self.batched { s.shape[..rank - 2].iter().product() } else { 1 };
            Some((batch, s.elements() / batch / s.width(), s.width()))
        };
        let ((batch, a0, a1), (batch_b, b0, b1)) = (matrix(a)?, matrix(b)?);
        let (m, k) = if self.layout == Layout::Tn { (a1, a0) } else { (a0, a1) };
        let (k_b, n) = if self.layout == Layout::Nt { (b1, b0) } else { (b0, b1) };
        let product = Product::new(self.layout, [m, n, k], [a.dtype, b.dtype, self.out]);
        let product = Product { batch, alpha: self.alpha, epilogue: self.epilogue, ..product };
        (batch == batch_b && k == k_b).then_some(product)
    }

    fn of(&self, io: &Io) -> Result<Product> {
        self.product(&io.ins[0], &io.ins[1]).ok_or_else(|| shape_error(self.name(), &io.ins, "operands do not fit"))
    }

    fn out_shape(&self, a: &Spec, m: usize, n: usize) -> Vec<usize> {
        let rank = a.shape.len();
        let mut shape = match (self.batched, self.layout) {
            (false, Layout::Tn) => vec![m],
            (true, _) => [&a.shape[..rank - 2], &[m]].concat(),
            (false, _) => a.shape[..rank - 1].to_vec(),
        };
        shape.push(n);
        shape
    }

    /// The gradients of a and b for the gradient `dc` of the product.
    fn operand_gradients(&self, g: &mut Gradients<'_>, dc: Var) -> Result<()> {
        let (a, b) = (g.input(0), g.input(1));
        let gemm =
            |layout, dtype| Gemm { layout, batched: self.batched, alpha: self.alpha, ..Gemm::new(layout, dtype) };
        let a_type = g.spec(a).dtype;
        let b_type = if self.weight { DType::F32 } else { g.spec(b).dtype };
        if g.wants(0) {
            let (layout, first, second) = match self.layout {
                Layout::Nn => (Layout::Nt, dc, b),
                Layout::Nt => (Layout::Nn, dc, b),
                Layout::Tn => (Layout::Nt, b, dc),
            };
            g.record(gemm(layout, a_type), &[first, second], &[(0, 0)])?;
        }
        if g.wants(1) {
            let (layout, first, second) = match self.layout {
                Layout::Nn => (Layout::Tn, a, dc),
                Layout::Nt => (Layout::Tn, dc, a),
                Layout::Tn => (Layout::Nn, a, dc),
            };
            g.record(gemm(layout, b_type), &[first, second], &[(0, 1)])?;
        }
        Ok(())
    }
}

impl Op for Gemm {
    fn name(&self) -> &'static str {
        match (self.layout, self.epilogue) {
            (Layout::Nn, Epilogue::None) => "gemm_nn",
            (Layout::Nt, Epilogue::None) => "gemm_nt",
            (Layout::Tn, Epilogue::None) => "gemm_tn",
            (_, Epilogue::Bias) => "gemm_bias",
            (_, Epilogue::BiasGelu(_)) => "gemm_bias_gelu",
            (_, Epilogue::GeluGrad(_)) => "gemm_gelu_grad",
        }
    }

    fn outputs(&self, ins: &[Spec]) -> Result<Vec<Spec>> {
        let count = if self.epilogue == Epilogue::None { 2 } else { 3 };
        expect_inputs(self.name(), ins, count)?;
        let Some(product) = self.product(&ins[0], &ins[1]) else {
            let happened = format!("float matrices of sizes that fit {:?} expected", self.layout);
            return Err(shape_error(self.name(), ins, happened));
        };
        let out = Spec::new(&self.out_shape(&ins[0], product.m, product.n), self.out);
        match self.epilogue {
            Epilogue::Bias | Epilogue::BiasGelu(_) if ins[2] != Spec::f32(&[product.n]) => {
                Err(shape_error(self.name(), ins, format!("a bias f32[{}] expected", product.n)))
            }
            Epilogue::GeluGrad(_) if ins[2].elements() != out.elements() || ins[2].dtype != self.out => {
                Err(shape_error(self.name(), ins, format!("GELU's input {out} expected")))
            }
            Epilogue::BiasGelu(_) => Ok(vec![out.clone(), out]),
            _ => Ok(vec![out]),
        }
    }

    fn accumulates(&self, k: usize) -> bool {
        // A sum that an activation follows cannot be added to.
        k == 0 && self.epilogue == Epilogue::None
    }

    fn variants(&self, io: &Io, caps: &Caps) -> Vec<Variant> {
        self.of(io).map(|product| variants(&product, caps)).unwrap_or_default()
    }

    fn program(&self, io: &Io, variant: &Variant, caps: &Caps) -> Result<Program> {
        let extra = match self.epilogue {
            Epilogue::None => vec![],
            Epilogue::Bias | Epilogue::GeluGrad(_) => vec![Bind::In(2)],
            Epilogue::BiasGelu(_) => vec![Bind::In(2), Bind::Out(1)],
        };
        let operands = Operands { a: Bind::In(0), b: Bind::In(1), c: Bind::Out(0), extra };
        let store = if self.accumulates(0) { Store::Output(0) } else { Store::Write };
        let mut program = Program::default();
        self.of(io)?.launch(&operands, store, variant, 0, caps, &mut program)?;
        Ok(program)
    }

    fn backward(&self, b: &mut Gradients<'_>) -> Result<Backward> {
        match self.epilogue {
            Epilogue::BiasGelu(_) | Epilogue::GeluGrad(_) => {
                return Ok(Backward::Stop("a part of the feed-forward block, whose own backward stands for it"));
            }
            Epilogue::None | Epilogue::Bias => {}
        }
        let Some(dc) = b.dout(0) else { return Ok(Backward::Rule) };
        self.operand_gradients(b, dc)?;
        if self.epilogue == Epilogue::Bias && b.wants(2) {
            b.record(ColumnSum, &[dc], &[(0, 2)])?;
        }
        Ok(Backward::Rule)
    }

    fn reference(&self, ins: &[&Host], io: &Io, _step: &Step) -> Vec<Vec<f64>> {
        let Ok(product) = self.of(io) else { return Vec::new() };
        let (sums, _) = sums(&product, &ins[0].data, &ins[1].data);
        let n = product.n;
        let with = |f: &dyn Fn(usize, f64) -> f64| sums.iter().enumerate().map(|(i, &s)| f(i, s)).collect::<Vec<f64>>();
        match self.epilogue {
            Epilogue::None => vec![sums],
            Epilogue::Bias => vec![with(&|i, s| s + ins[2].data[i % n])],
            Epilogue::BiasGelu(gelu) => {
                let pre = with(&|i, s| s + ins[2].data[i % n]);
                vec![pre.iter().map(|&x| gelu.value(x)).collect(), pre]
            }
            Epilogue::GeluGrad(gelu) => vec![with(&|i, s| s * gelu.slope(ins[2].data[i]))],
        }
    }

    fn tolerance(&self, io: &Io, _k: usize) -> Tolerance {
        Tolerance::sum(self.of(io).map_or(1, |p| p.k))
    }

    // Terms may cancel, so each element is held to its own sum of |a||b|, not to the largest element.
    fn worst(&self, k: usize, ins: &[&Host], io: &Io, _step: &Step, got: &[f64], want: &[f64]) -> f64 {
        let Ok(product) = self.of(io) else { return f64::INFINITY };
        let (sums, magnitudes) = sums(&product, &ins[0].data, &ins[1].data);
        let bound = |i: usize| {
            let sum = sum_bound(product.k, magnitudes[i]);
            let extra = |j: usize| ins[2].data[j];
            match self.epilogue {
                Epilogue::None => sum + EPS * want[i].abs(),
                Epilogue::Bias => sum + EPS * (want[i].abs() + extra(i % product.n).abs()),
                Epilogue::BiasGelu(_) => {
                    let pre = sums[i] + extra(i % product.n);
                    let sum = sum + EPS * (pre.abs() + extra(i % product.n).abs());
                    if k == 1 { sum } else { GELU_SLOPE * sum + GELU_ERROR * pre.abs().max(1.0) }
                }
                Epilogue::GeluGrad(gelu) => sum * gelu.slope(extra(i)).abs() + 2.0 * GELU_ERROR * sums[i].abs(),
            }
        };
        worst_by(bound, &io.outs[k], got, want)
    }
}

/// Largest slope of GELU.
const GELU_SLOPE: f64 = 1.13;

/// Error of GELU in f32 relative to max(1, |x|): 8.1e-8 of its own (see `shaders/shared/gelu.wgsl`) and 0.17 times the
/// error of the driver's exp, which was seen to be up to 1e-6.
const GELU_ERROR: f64 = 4e-7;

/// Bound on the error of a sum of `k` products whose magnitudes add up to `magnitude`: see [`Tolerance::sum`].
fn sum_bound(k: usize, magnitude: f64) -> f64 {
    8.0 * (k as f64).sqrt() * EPS * magnitude
}

/// Worst |got - want| / bound, each element by its own bound.
fn worst_by(bound: impl Fn(usize) -> f64, spec: &Spec, got: &[f64], want: &[f64]) -> f64 {
    let ratio = |i: usize| worst_ratio(Tolerance::EXACT.plus_abs(bound(i)), spec, &got[i..=i], &want[i..=i]);
    (0..want.len().min(got.len())).map(ratio).fold(0.0, |worst, r| if r.is_nan() { r } else { worst.max(r) })
}

/// alpha op(A) op(B) in f64, and alpha |op(A)| |op(B)|.
fn sums(p: &Product, a: &[f64], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut sums = Vec::with_capacity(p.batch * p.m * p.n);
    let mut magnitudes = Vec::with_capacity(p.batch * p.m * p.n);
    for z in 0..p.batch {
        let (a, b) = (&a[z * p.stride_a..], &b[z * p.stride_b..]);
        for i in 0..p.m {
            for j in 0..p.n {
                let term = |l: usize| {
                    let x = if p.layout == Layout::Tn { a[l * p.lda + i] } else { a[i * p.lda + l] };
                    let y = if p.layout == Layout::Nt { b[j * p.ldb + l] } else { b[l * p.ldb + j] };
                    x * y * f64::from(p.alpha)
                };
                let (sum, magnitude) = (0..p.k).map(term).fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                sums.push(sum);
                magnitudes.push(magnitude);
            }
        }
    }
    (sums, magnitudes)
}
