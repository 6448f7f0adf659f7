//! Results that a call left in device memory, brought to the host.

use cudarc::driver::sys;

use crate::error::Result;

use super::driver::check;
use super::{Device, Stream};

impl Device {
    /// Copies `bytes` to host memory when the stream has come here, and waits for that.
    ///
    /// # Safety
    /// `bytes` of this device's memory at `from`, and of host memory at `to`.
    pub unsafe fn read(&self, from: *const u8, to: *mut u8, bytes: usize, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.expect_not_capturing(stream, "a result cannot be read during a capture")?;
        self.check_pointer(from.cast(), "the result")?;
        // SAFETY: the caller's promise; the copy has ended when the second call returns.
        unsafe {
            if bytes > 0 {
                check(sys::cuMemcpyDtoHAsync_v2(to.cast(), from as u64, bytes, stream.0), "cuMemcpyDtoHAsync")?;
            }
            check(sys::cuStreamSynchronize(stream.0), "cuStreamSynchronize")
        }
    }
}
