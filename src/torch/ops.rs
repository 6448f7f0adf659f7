//! The ops. Each reads its arguments, checks them as the C interface does, and runs or enqueues the work.

mod fused;
mod linear;
mod quantize;

pub use fused::{RmsNormQuantize, SiluAndMulQuantize};
pub use linear::{Linear, LinearOut, LinearPrepare};
pub use quantize::{QuantizeActivation, QuantizeActivationOut, QuantizeWeight, QuantizeWeights};
