//! Facts about every kernel: one file per op family, `suite/` for what holds of all of them.
//!
//! The tests run on whatever adapter `DENSHI_ADAPTER` names, by default the best there is; Mesa's software Vulkan will do.

mod suite;

mod activation;
mod adam;
mod add;
mod attention;
mod bce;
mod cast;
mod cross_entropy;
mod dropout;
mod embedding;
mod gather;
mod gemm;
mod layer_norm;
mod norm;
mod reduce;
mod sample;
mod softmax;
mod vocabulary;
