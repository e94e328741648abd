//! Facts about every kernel: one file per op family, `suite/` for what holds of all of them.
//!
//! The tests run on whatever adapter `DENSHI_ADAPTER` names, by default the best there is; Mesa's software Vulkan will do.

mod suite;

mod add;
mod gemm;
