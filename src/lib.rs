//! denshi: a hand-written GPU compute engine that trains ELECTRA and BERT.
//!
//! Layers point downwards: [`cli`] → [`doctor`] → [`tape`] → [`ops`] → [`gpu`].

pub mod error;
pub mod gpu;
pub mod ops;
pub mod tape;
