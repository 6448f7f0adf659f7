//! The C ABI, and the only `extern "C"` of the crate. No formula here: an entry converts, calls, and reports.
//!
//! The conventions that a C reader needs are in `cbindgen.toml`, which puts them at the top of the header.

// A precondition stands as a sentence of the comment: a "Safety" heading would land in the C header.
#![allow(clippy::missing_safety_doc)]

mod context;
mod convert;
mod fingerprint;
mod fused;
mod guard;
#[cfg(all(test, not(miri)))]
mod header;
mod linear;
mod policy;
mod quantize;
mod refit;
mod refit_plan;
mod report;
mod scales;
mod shard;
mod torch;
mod types;
mod version;

pub use context::*;
pub use fingerprint::*;
pub use fused::*;
pub use linear::*;
pub use policy::*;
pub use quantize::*;
pub use refit::*;
pub use refit_plan::*;
pub use report::*;
pub use scales::*;
pub use shard::*;
pub use torch::*;
pub use types::*;
pub use version::*;
