//! Operations, one family a file: shapes, launches, variants, backward, cost, f64 reference, cases.
//!
//! Adding a kernel touches one `.wgsl`, one file here, one file in `kernels-tests/`, and the two lists of modules.

mod case;
mod launch;
pub mod losses;
mod op;
pub mod random;
mod rows;
mod tensor;

pub use case::{Case, CaseRecorder, Family, Fill};
pub use launch::{Bind, Cost, Immediates, Launch, Program, Store, fold_grid};
pub use op::{
    Backward, EPS, Gradients, Io, Op, Recorder, Tolerance, Var, Variant, expect_inputs, shape_error, worst_ratio,
};
pub use tensor::{DType, Host, Spec};

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Every op family there is. Tests, `doctor`, benches and the profiler walk this list.
        pub const FAMILIES: &[Family] = &[$(Family {
            name: stringify!($name),
            cases: $name::cases,
            bench_cases: $name::bench_cases,
        }),*];
    };
}

families! {
    activation,
    adam,
    add,
    attention,
    bce,
    cast,
    cross_entropy,
    dropout,
    embedding,
    gather,
    gemm,
    layer_norm,
    norm,
    reduce,
    sample,
    softmax,
    vocabulary,
}
