//! What went wrong: a kind, which the C ABI maps to a status, and a message for a person.

/// The kinds of failure. Each maps to one status of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InvalidArgument,
    NullPointer,
    Shape,
    Stride,
    Alignment,
    Dtype,
    Device,
    Bounds,
    Overlap,
    Workspace,
    StructSize,
    Unsupported,
    NotPrepared,
    NoDevice,
    Forked,
    OutOfMemory,
    /// The CUDA driver's number.
    Cuda(i32),
    Internal,
    /// A refit in which something was not filled.
    Incomplete,
    /// Called in a state in which it may not be.
    State,
}

/// A failure. The message names the argument and both numbers; the C ABI puts the function's name before it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

/// Makes an error out of line. The text is a closure that owns copies of what it shows: arguments that were formatted in
/// place would live in memory, and be stored and loaded by every call that does not fail.
#[cold]
#[inline(never)]
pub(crate) fn make(kind: Kind, text: impl FnOnce() -> String) -> Error {
    Error { kind, message: text() }
}

/// Returns from the function with an [`Error`] of this kind.
macro_rules! fail {
    ($kind:ident, $($message:tt)+) => {
        return Err($crate::error::make($crate::error::Kind::$kind, move || format!($($message)+)))
    };
}

/// Fails unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $kind:ident, $($message:tt)+) => {
        if !$condition {
            $crate::error::fail!($kind, $($message)+);
        }
    };
}

pub(crate) use {ensure, fail};
