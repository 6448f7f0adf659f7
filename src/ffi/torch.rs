//! Ops of torch.

use super::guard::guard;
use super::types::fp8rt_status;

/// Registers the ops of namespace `fp8rt` with the torch that is in this process: `torch.ops.fp8rt`, as the README's
/// chapter "From torch" lists them. Loading the library does the same, so this is for a process that imported torch
/// afterwards. Once they are registered it does nothing. Torch 2.11 or newer.
///
/// Errors: UNSUPPORTED if torch is not in the process, is older, or lacks something, which the message names.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_torch_register() -> fp8rt_status {
    guard("fp8rt_torch_register", crate::torch::register)
}
