//! Kernels that were the fastest on an H100 80GB.

/// A number of rows, and the name of the kernel that was the fastest for it.
type Row = (usize, &'static str);

/// N, K, and the kernels by rows. Of y in bf16.
pub const MEASURED: &[(usize, usize, &[Row])] = &[];
