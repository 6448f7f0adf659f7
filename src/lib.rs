//! fp8rt: block-scaled FP8 for large-model reinforcement learning, as one shared library with a C ABI.
//!
//! The library is used through `include/fp8rt.h`. The Rust modules are public for its own tests and benches; they are not
//! a Rust interface and change freely.
//!
//! Who may know what: `formats`, `recipe` and `blocks` know no pointers, devices or C types; `reference` stays naive and
//! is what everything else is held to; `ffi` holds no formula and is used by nobody; backends do not know each other.

#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod backend;
pub mod blocks;
pub mod context;
pub mod copy;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod device;
pub mod error;
pub mod ffi;
pub mod fingerprint;
pub mod formats;
pub mod fused;
#[cfg(feature = "cuda")]
pub mod kernels;
pub mod linear;
pub mod log;
pub mod measure;
pub mod plan;
pub mod policy;
pub mod quantize;
pub mod recipe;
pub mod reference;
pub mod refit;
pub mod report;
pub mod shard;
pub mod table;
pub mod tensor;
mod torch;
