//! How an op asks for work: kernels, bindings, parameters, grid, and what it costs.

use crate::gpu::KernelKey;

/// Floating-point operations (multiply and add count two) and bytes that have to move at least once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

impl std::ops::Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(iter: I) -> Cost {
        iter.fold(Cost::default(), std::ops::Add::add)
    }
}

/// What stands at a binding of a kernel. Offsets are in bytes and multiples of [`crate::gpu::ALIGN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    In(usize),
    Out(usize),
    /// Scratch memory `i` of [`Program::scratch`].
    Scratch(usize),
    InAt {
        input: usize,
        offset: u64,
        bytes: u64,
    },
    OutAt {
        output: usize,
        offset: u64,
        bytes: u64,
    },
    /// The step uniform.
    Step,
}

/// Whether a launch writes its output or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Write,
    Add,
    /// As the plan says of this output of the op.
    Output(usize),
}

/// Parameters of a launch, in the order of the kernel's `Params`.
#[derive(Clone, Debug, Default)]
pub struct Immediates {
    pub(crate) bytes: Vec<u8>,
    pub(crate) accumulate: Vec<(usize, usize)>,
}

impl Immediates {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u32(mut self, v: impl TryInto<u32>) -> Self {
        // Sizes above u32 have been refused long before (a binding spans less than 2^32 elements).
        self.bytes.extend(v.try_into().unwrap_or(u32::MAX).to_le_bytes());
        self
    }

    pub fn f32(mut self, v: f32) -> Self {
        self.bytes.extend(v.to_le_bytes());
        self
    }

    /// A u32 that is 1 when output `k` is to be added to, 0 when it is to be written; the plan fills it in.
    pub fn accumulate(mut self, k: usize) -> Self {
        self.accumulate.push((self.bytes.len(), k));
        self.u32(0u32)
    }

    /// The flag for `store`: 1 adds, 0 writes.
    pub fn store(self, store: Store) -> Self {
        match store {
            Store::Write => self.u32(0u32),
            Store::Add => self.u32(1u32),
            Store::Output(k) => self.accumulate(k),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Launch {
    pub kernel: KernelKey,
    /// In ascending order of the kernel's binding numbers.
    pub bindings: Vec<Bind>,
    pub immediates: Immediates,
    pub grid: [u32; 3],
    pub cost: Cost,
    /// Left out when this output is being added to (a fill before scattered additions).
    pub only_when_written: Option<usize>,
}

impl Launch {
    pub fn new(kernel: KernelKey, bindings: &[Bind], immediates: Immediates, grid: [u32; 3], cost: Cost) -> Self {
        Launch { kernel, bindings: bindings.to_vec(), immediates, grid, cost, only_when_written: None }
    }

    pub fn only_when_written(mut self, output: usize) -> Self {
        self.only_when_written = Some(output);
        self
    }
}

/// The launches of one op and the scratch memory they share.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub launches: Vec<Launch>,
    /// Bytes of each scratch buffer; contents are undefined at the start.
    pub scratch: Vec<u64>,
}

impl From<Launch> for Program {
    fn from(launch: Launch) -> Self {
        Program { launches: vec![launch], scratch: Vec::new() }
    }
}

/// Workgroups for `n` work items in a grid that is folded into x and y: `index = wg.x + wg.y * grid.x`.
/// Kernels must ignore indices at or past their count: the fold can leave a remainder.
pub fn fold_grid(n: usize, per_dimension: u32) -> [u32; 3] {
    let limit = per_dimension.max(1) as usize;
    let n = n.max(1);
    if n <= limit {
        return [n as u32, 1, 1];
    }
    let y = n.div_ceil(limit);
    [n.div_ceil(y) as u32, y as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_grids_cover_their_items_within_the_limit() {
        for n in [1usize, 7, 65_535, 65_536, 1_000_000, 65_535 * 65_535] {
            let [x, y, z] = fold_grid(n, 65_535);
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            let covered = x as usize * y as usize;
            assert!(covered >= n && covered - n < y as usize, "{n}: {x} x {y}");
        }
    }
}
