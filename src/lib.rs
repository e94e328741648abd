//! denshi (電子): a hand-written GPU compute engine that trains ELECTRA and BERT on any GPU that speaks Vulkan, Metal or
//! DX12. Own WGSL kernels through wgpu, own autograd tape, no machine learning framework.
//!
//! Layers point downwards: [`cli`] → [`doctor`] → [`tape`] → [`ops`] → [`gpu`].
//!
//! * [`gpu`]: adapter, limits, shader templates, pipelines, buffers with accounting, submission, timestamps.
//! * [`ops`]: one family a file: shapes, launches, variants, backward, cost, f64 reference, cases.
//! * [`tape`]: records ops and their gradients once; plans buffers; replays without allocating.
//! * [`doctor`]: every kernel and variant of an adapter against f64 references.
//!
//! Data goes: ordinary Rust calls ops on values → [`tape::Tape`] → [`tape::Plan`] (variants, lifetimes, buffers, memory by
//! purpose) → [`tape::Session`] (dispatches made once) → replays that change only the inputs and 64 bytes of step.

pub mod cli;
pub mod doctor;
pub mod error;
pub mod gpu;
pub mod ops;
pub mod tape;
