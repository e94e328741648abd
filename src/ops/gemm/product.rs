//! One matrix product as launches: the problem, where its operands stand, and the kernels of each variant.

use super::Gelu;
use super::variants::Scheme;
use crate::error::{Error, Kind, Result};
use crate::gpu::{Caps, KernelKey};
use crate::ops::{Bind, Cost, DType, Immediates, Launch, Program, Variant, fold_grid};

/// Which operand is transposed; all are row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A[M,K] B[K,N]
    Nn,
    /// A[M,K] B[N,K]
    Nt,
    /// A[K,M] B[K,N]
    Tn,
}

/// What happens to a finished sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    None,
    /// C = AB + bias, bias f32[N].
    Bias,
    /// pre = AB + bias and C = gelu(pre), both stored.
    BiasGelu(Gelu),
    /// C = AB * gelu'(pre).
    GeluGrad(Gelu),
}

/// C[M,N] (+)= alpha op(A) op(B), `batch` times over.
#[derive(Clone, Debug)]
pub struct Product {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    /// Elements from one row to the next, in memory.
    pub lda: usize,
    pub ldb: usize,
    pub ldc: usize,
    /// Elements from one batch entry to the next.
    pub stride_a: usize,
    pub stride_b: usize,
    pub stride_c: usize,
    pub alpha: f32,
    pub a: DType,
    pub b: DType,
    pub c: DType,
    pub epilogue: Epilogue,
}

/// Where the operands stand. `extra`: bias; bias and pre; or pre, as the epilogue asks.
#[derive(Clone, Debug)]
pub struct Operands {
    pub a: Bind,
    pub b: Bind,
    pub c: Bind,
    pub extra: Vec<Bind>,
}

/// Whether C is written or added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Write,
    Add,
    /// As the plan says of this output of the op.
    Output(usize),
}

impl Store {
    fn put(self, immediates: Immediates) -> Immediates {
        match self {
            Store::Write => immediates.u32(0u32),
            Store::Add => immediates.u32(1u32),
            Store::Output(k) => immediates.accumulate(k),
        }
    }
}

impl Product {
    /// Dense operands of these types, one batch entry.
    pub fn new(layout: Layout, [m, n, k]: [usize; 3], [a, b, c]: [DType; 3]) -> Product {
        let lda = if layout == Layout::Tn { m } else { k };
        let ldb = if layout == Layout::Nt { k } else { n };
        let (stride_a, stride_b, stride_c) = (m * k, k * n, m * n);
        let (alpha, epilogue) = (1.0, Epilogue::None);
        Product { layout, m, n, k, batch: 1, lda, ldb, ldc: n, stride_a, stride_b, stride_c, alpha, a, b, c, epilogue }
    }

    pub fn cost(&self) -> Cost {
        let batch = self.batch as f64;
        let (m, n, k) = (self.m as f64, self.n as f64, self.k as f64);
        let outputs = if matches!(self.epilogue, Epilogue::BiasGelu(_) | Epilogue::GeluGrad(_)) { 2.0 } else { 1.0 };
        let (a, b, c) = (self.a.bytes() as f64, self.b.bytes() as f64, self.c.bytes() as f64);
        Cost { flops: 2.0 * m * n * k * batch, bytes: batch * (m * k * a + k * n * b + m * n * c * outputs) }
    }

    /// Vector width of accesses along rows of `extent` elements.
    fn vector(extent: usize, ld: usize, stride: usize, batch: usize) -> u32 {
        let aligned = |x: usize| x.is_multiple_of(4);
        if aligned(extent) && aligned(ld) && (batch == 1 || aligned(stride)) { 4 } else { 1 }
    }

    /// Parts that K is cut into and their size. A result of few tiles with a long K leaves a device idle otherwise.
    fn splits(&self, tiles: usize, caps: &Caps) -> (usize, usize) {
        const SHORTEST: usize = 256;
        let wanted = if caps.is_cpu() { 16 } else { 256 };
        let fits = caps.limits.binding_bytes as usize / (4 * self.m * self.n * self.batch).max(1);
        let most = (wanted / (tiles * self.batch).max(1)).min(self.k / SHORTEST).min(64).min(fits);
        if most < 2 || self.epilogue != Epilogue::None {
            return (1, self.k.next_multiple_of(64));
        }
        let size = self.k.div_ceil(most).next_multiple_of(64);
        (self.k.div_ceil(size), size)
    }

    /// Appends the launches of this product by `variant` to `program`. Scratch memory `slot` (the next one, or one
    /// that earlier launches of the same program are done with) is used where K is cut.
    pub fn launch(
        &self,
        operands: &Operands,
        store: Store,
        variant: &Variant,
        slot: usize,
        caps: &Caps,
        program: &mut Program,
    ) -> Result<()> {
        let scheme = Scheme::from_args(&variant.args);
        let (bm, bn) = scheme.tile();
        let (tiles_m, tiles_n) = (self.m.div_ceil(bm), self.n.div_ceil(bn));
        let (splits, k_split) = self.splits(tiles_m * tiles_n, caps);
        let limit = caps.limits.workgroups_per_dimension;
        if self.batch * splits > limit as usize {
            let attempted = format!("launch a batch of {} products {}x{}x{}", self.batch, self.m, self.n, self.k);
            return Err(Error::new(Kind::Limit, attempted, format!("this adapter takes {limit} at a time"))
                .hint("use a smaller batch or more micro-batches"));
        }
        let cut = splits > 1;
        let (a_extent, b_extent) = match self.layout {
            Layout::Nn => (self.k, self.n),
            Layout::Nt => (self.k, self.k),
            Layout::Tn => (self.m, self.n),
        };
        let (ldc, stride_c, c) =
            if cut { (self.n, self.m * self.n, DType::F32) } else { (self.ldc, self.stride_c, self.c) };
        let vc = Self::vector(self.n, ldc, stride_c, self.batch * splits);
        let (epilogue, gelu) = match self.epilogue {
            Epilogue::None => ("none", Gelu::Erf),
            Epilogue::Bias => ("bias", Gelu::Erf),
            Epilogue::BiasGelu(gelu) => ("bias_gelu", gelu),
            Epilogue::GeluGrad(gelu) => ("dgelu", gelu),
        };
        let layout = match self.layout {
            Layout::Nn => "nn",
            Layout::Nt => "nt",
            Layout::Tn => "tn",
        };
        let kernel = scheme
            .kernel()
            .with("LAYOUT", layout)
            .with("TA", self.a.wgsl())
            .with("TB", self.b.wgsl())
            .with("TC", c.wgsl())
            .with("EPILOGUE", epilogue)
            .with("GELU", if gelu == Gelu::Erf { "erf" } else { "tanh" })
            .with("VA", Self::vector(a_extent, self.lda, self.stride_a, self.batch))
            .with("VB", Self::vector(b_extent, self.ldb, self.stride_b, self.batch))
            .with("VC", vc)
            .with("KTAIL", !self.k.is_multiple_of(4));
        let [x, y, _] = fold_grid(tiles_m * tiles_n, limit);
        let immediates = Immediates::new().u32(self.m).u32(self.n).u32(self.k).u32(self.lda).u32(self.ldb).u32(ldc);
        let immediates = immediates.u32(self.stride_a).u32(self.stride_b).u32(stride_c);
        let immediates = if cut { immediates.u32(0u32).f32(1.0) } else { store.put(immediates).f32(self.alpha) };
        let immediates = immediates.u32(tiles_m).u32(tiles_n).u32(BAND).u32(x).u32(splits).u32(k_split);
        let target = if cut { Bind::Scratch(slot) } else { operands.c };
        let mut bindings = vec![operands.a, operands.b, target];
        bindings.extend(&operands.extra);
        let grid = [x, y, (self.batch * splits) as u32];
        program.launches.push(Launch::new(kernel, &bindings, immediates, grid, self.cost()));
        if cut {
            self.sum_parts(operands.c, store, splits, slot, limit, program);
        }
        Ok(())
    }

    fn sum_parts(&self, c: Bind, store: Store, splits: usize, slot: usize, limit: u32, program: &mut Program) {
        const THREADS: usize = 64;
        let elements = self.m * self.n;
        program.scratch.resize(program.scratch.len().max(slot + 1), 0);
        let held = 4 * splits * self.batch * elements;
        program.scratch[slot] = program.scratch[slot].max(held as u64);
        let vector = Self::vector(self.n, self.ldc, self.stride_c, self.batch);
        let kernel =
            KernelKey::new("gemm_splitk.wgsl", "main").with("TC", self.c.wgsl()).with("VC", vector).with("WG", THREADS);
        let [x, y, _] = fold_grid((elements / vector as usize).div_ceil(THREADS), limit);
        let immediates = Immediates::new().u32(self.m).u32(self.n).u32(self.ldc).u32(self.stride_c).u32(splits);
        let immediates = store.put(immediates).f32(self.alpha).u32(x);
        let bytes = (held + elements * self.batch * self.c.bytes() as usize) as f64;
        let cost = Cost { flops: (splits * elements * self.batch) as f64, bytes };
        program.launches.push(Launch::new(
            kernel,
            &[Bind::Scratch(slot), c],
            immediates,
            [x, y, self.batch as u32],
            cost,
        ));
    }
}

/// Rows of tiles walked together. Their share of A has to stay in a core's cache: 16 x 32 rows of 256 f32 are 512 kB.
const BAND: u32 = 16;
