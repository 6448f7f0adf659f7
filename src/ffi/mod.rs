//! The C ABI, and the only `extern "C"` of the crate. No formula here: an entry converts, calls, and reports.
//!
//! The conventions that a C reader needs are in `cbindgen.toml`, which puts them at the top of the header.

// A precondition stands as a sentence of the comment: a "Safety" heading would land in the C header.
#![allow(clippy::missing_safety_doc)]

mod context;
mod convert;
mod fused;
mod guard;
#[cfg(all(test, not(miri)))]
mod header;
mod linear;
mod quantize;
mod refit;
mod scales;
mod torch;
mod types;
mod version;

pub use context::*;
pub use fused::*;
pub use linear::*;
pub use quantize::*;
pub use refit::*;
pub use scales::*;
pub use torch::*;
pub use types::*;
pub use version::*;
