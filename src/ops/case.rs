//! Cases: one seeded description from which tests, `doctor`, benches and the profiler run an op.

use super::op::{Recorder, Var};
use super::tensor::DType;
use crate::error::Result;

/// How an input of a case is filled; seeded by the case's name and the input's number.
#[derive(Clone, Debug)]
pub enum Fill {
    Uniform(f64, f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Whole numbers in `0..n`.
    Ids(usize),
    Const(f64),
    Values(Vec<f64>),
}

/// A recorder that also makes inputs.
pub trait CaseRecorder: Recorder {
    /// An input whose gradient is wanted if it is not an id type.
    fn input(&mut self, shape: &[usize], dtype: DType, fill: Fill) -> Var;

    /// Starts backward: the gradient of `v` is filled as told, in `v`'s type.
    fn seed(&mut self, v: Var, fill: Fill) -> Result<()>;
}

type Build = Box<dyn Fn(&mut dyn CaseRecorder) -> Result<()> + Send + Sync>;

pub struct Case {
    /// A fact about the product: `layer_norm_ragged_width_257`.
    pub name: String,
    /// Needs f16 storage.
    pub f16: bool,
    pub build: Build,
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        build: impl Fn(&mut dyn CaseRecorder) -> Result<()> + Send + Sync + 'static,
    ) -> Case {
        Case { name: name.into(), f16: false, build: Box::new(build) }
    }

    /// One case for f32 storage and one for f16 (name ends in `_f16`).
    pub fn both(
        name: impl Into<String>,
        build: impl Fn(&mut dyn CaseRecorder, DType) -> Result<()> + Send + Sync + Clone + 'static,
    ) -> [Case; 2] {
        let name = name.into();
        let half = build.clone();
        [
            Case { name: name.clone(), f16: false, build: Box::new(move |r| build(r, DType::F32)) },
            Case { name: format!("{name}_f16"), f16: true, build: Box::new(move |r| half(r, DType::F16)) },
        ]
    }
}

/// An op family: a file here with its cases.
pub struct Family {
    pub name: &'static str,
    /// Small cases for correctness: sizes 1, prime, ragged, at the limits; small and large values.
    pub cases: fn() -> Vec<Case>,
    /// Cases at the sizes of ELECTRA-Small and BERT-base, for speed.
    pub bench_cases: fn() -> Vec<Case>,
}
