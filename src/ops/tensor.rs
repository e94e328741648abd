//! Shapes and element types, and tensors on the host for references and tests.

use std::fmt;

/// Element type in storage. Arithmetic is f32 whatever the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    F16,
    U32,
}

impl DType {
    pub fn bytes(self) -> u64 {
        if self == DType::F16 { 2 } else { 4 }
    }

    /// The WGSL name, as shader templates take it.
    pub fn wgsl(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::U32 => "u32",
        }
    }

    /// `x` as this type stores it.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::F16 => f64::from(half::f16::from_f64(x)),
            DType::U32 => x,
        }
    }

    /// Relative rounding error of one store (half a unit in the last place).
    pub fn epsilon(self) -> f64 {
        match self {
            DType::F32 => 0.5f64.powi(24),
            DType::F16 => 0.5f64.powi(11),
            DType::U32 => 0.0,
        }
    }

    /// Smallest positive number it stores; what is below may come back as zero. Drivers may flush f32 subnormals.
    pub fn tiny(self) -> f64 {
        match self {
            DType::F32 => f64::from(f32::MIN_POSITIVE),
            DType::F16 => 0.5f64.powi(24),
            DType::U32 => 0.0,
        }
    }
}

/// Shape (row-major) and element type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl Spec {
    pub fn new(shape: &[usize], dtype: DType) -> Spec {
        Spec { shape: shape.to_vec(), dtype }
    }

    pub fn f32(shape: &[usize]) -> Spec {
        Spec::new(shape, DType::F32)
    }

    pub fn u32(shape: &[usize]) -> Spec {
        Spec::new(shape, DType::U32)
    }

    /// Number of elements; saturates, and what saturates fits no buffer.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Bytes of the elements, without alignment.
    pub fn bytes(&self) -> u64 {
        (self.elements() as u64).saturating_mul(self.dtype.bytes())
    }

    /// Length of the last axis (1 for a scalar).
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.wgsl(), self.shape)
    }
}

/// A tensor on the host in f64: what references compute with.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    pub spec: Spec,
    pub data: Vec<f64>,
}

impl Host {
    pub fn zeros(spec: Spec) -> Host {
        let data = vec![0.0; spec.elements()];
        Host { spec, data }
    }

    /// Element `i` as an index; for ids, lengths and labels.
    pub fn index(&self, i: usize) -> usize {
        self.data[i] as usize
    }

    /// Row `r` of the last axis.
    pub fn row(&self, r: usize) -> &[f64] {
        let w = self.spec.width();
        &self.data[r * w..(r + 1) * w]
    }

    /// As the device stores it.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self.spec.dtype {
            DType::F32 => self.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::F16 => self.data.iter().flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect(),
            DType::U32 => self.data.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect(),
        }
    }

    /// From the device's bytes; `bytes` may be longer than the tensor.
    pub fn from_bytes(spec: &Spec, bytes: &[u8]) -> Host {
        let n = spec.elements();
        let data = match spec.dtype {
            DType::F32 => {
                let word = |c: &[u8]| f64::from(f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
                bytes.chunks_exact(4).take(n).map(word).collect()
            }
            DType::F16 => {
                let word = |c: &[u8]| f64::from(half::f16::from_le_bytes([c[0], c[1]]));
                bytes.chunks_exact(2).take(n).map(word).collect()
            }
            DType::U32 => {
                let word = |c: &[u8]| f64::from(u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
                bytes.chunks_exact(4).take(n).map(word).collect()
            }
        };
        Host { spec: spec.clone(), data }
    }
}
