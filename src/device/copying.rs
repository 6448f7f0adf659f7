//! A stream that copies beside the caller's, through memory of two halves.

use cudarc::driver::sys;

use crate::error::Result;

use super::Stream;
use super::copy::copy_rows;
use super::driver::check;

/// The stream and its events.
pub struct Copying {
    stream: sys::CUstream,
    /// The caller's stream has come to the call.
    begun: sys::CUevent,
    /// A half has been filled; a half has been read.
    filled: [sys::CUevent; 2],
    read: [sys::CUevent; 2],
}

// SAFETY: handles of the driver; the user holds a lock.
unsafe impl Send for Copying {}

impl Copying {
    /// Our context is current.
    pub fn new() -> Result<Copying> {
        let mut made = Copying {
            stream: std::ptr::null_mut(),
            begun: std::ptr::null_mut(),
            filled: [std::ptr::null_mut(); 2],
            read: [std::ptr::null_mut(); 2],
        };
        match made.fill() {
            Ok(()) => Ok(made),
            Err(error) => {
                made.destroy();
                Err(error)
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        let apart = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: places for handles.
        unsafe {
            check(sys::cuStreamCreate(&mut self.stream, apart), "cuStreamCreate")?;
            let events = [&mut self.begun].into_iter().chain(&mut self.filled).chain(&mut self.read);
            for event in events {
                check(sys::cuEventCreate(event, untimed), "cuEventCreate")?;
            }
        }
        Ok(())
    }

    /// Frees what was made. Our context is current.
    pub fn destroy(&mut self) {
        let events = [self.begun, self.filled[0], self.filled[1], self.read[0], self.read[1]];
        // SAFETY: our handles; work that uses them goes on.
        unsafe {
            for event in events.into_iter().filter(|event| !event.is_null()) {
                sys::cuEventDestroy_v2(event);
            }
            if !self.stream.is_null() {
                sys::cuStreamDestroy_v2(self.stream);
            }
        }
    }

    /// Copies begin when the caller's stream has come here.
    pub fn begin(&self, caller: Stream) -> Result<()> {
        record(self.begun, caller.0)?;
        wait(self.stream, self.begun)
    }

    /// Enqueues a copy from host memory.
    pub fn copy(&self, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller of the library vouches for both.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to as u64, from.cast(), bytes, self.stream) };
        check(result, "cuMemcpyHtoDAsync")
    }

    /// Enqueues a copy of rows from host memory to where they follow each other. `extent` is bytes of a row, and rows.
    pub fn copy_rows(&self, to: *mut u8, from: *const u8, from_pitch: usize, extent: [usize; 2]) -> Result<()> {
        copy_rows(to, extent[0], from, from_pitch, extent, true, Stream(self.stream))
    }

    /// The caller's stream goes on when the copies so far have arrived.
    pub fn copied(&self, side: usize, caller: Stream) -> Result<()> {
        record(self.filled[side], self.stream)?;
        wait(caller.0, self.filled[side])
    }

    /// The caller's stream has read this half when it comes here.
    pub fn read(&self, side: usize, caller: Stream) -> Result<()> {
        record(self.read[side], caller.0)
    }

    /// Copies go on when this half has been read.
    pub fn wait_until_read(&self, side: usize) -> Result<()> {
        wait(self.stream, self.read[side])
    }
}

fn record(event: sys::CUevent, stream: sys::CUstream) -> Result<()> {
    // SAFETY: live handles.
    check(unsafe { sys::cuEventRecord(event, stream) }, "cuEventRecord")
}

fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<()> {
    // SAFETY: live handles.
    check(unsafe { sys::cuStreamWaitEvent(stream, event, 0) }, "cuStreamWaitEvent")
}
