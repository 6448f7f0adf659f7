//! A context: the device that calls run on and what they need there.

use std::ffi::c_void;

use crate::copy::Copy;
use crate::cpu::{self, Engine};
#[cfg(feature = "cuda")]
use crate::device::{Device, DeviceTable, Stream};
use crate::error::{Result, ensure};
use crate::fingerprint;
use crate::fused::Fused;
use crate::measure::Measurement;
use crate::quantize::{Dequantize, Health, HealthPointer, Quantize};
use crate::refit::{Entries, Manner};
use crate::tensor::Tensor;

/// Host memory, as a device number.
pub const HOST: i32 = -1;

/// What runs the calls.
enum Place {
    Host(Engine),
    #[cfg(feature = "cuda")]
    Gpu(Box<Device>),
}

/// Shared by every plan that was made from it.
pub struct Context {
    pub device: i32,
    place: Place,
}

impl Context {
    /// `device` is [`HOST`] or a CUDA ordinal; `num_threads` of 0 means as many as this process may use.
    pub fn new(device: i32, num_threads: usize) -> Result<Context> {
        ensure!(device >= HOST, InvalidArgument, "device is {device}, must be -1 (host) or a CUDA ordinal");
        let place = if device == HOST { Place::Host(Engine::new(num_threads)?) } else { open(device)? };
        Ok(Context { device, place })
    }

    /// What host calls run on; `None` on a GPU.
    pub fn engine(&self) -> Option<&Engine> {
        match &self.place {
            Place::Host(engine) => Some(engine),
            #[cfg(feature = "cuda")]
            Place::Gpu(_) => None,
        }
    }

    /// The GPU; `None` on the host.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Option<&Device> {
        match &self.place {
            Place::Host(_) => None,
            Place::Gpu(device) => Some(device),
        }
    }

    /// Asks whether tensors are memory of the context's device. On the host nobody can say.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn expect_memory(&self, tensors: &[Option<&Tensor>]) -> Result<()> {
        match &self.place {
            Place::Host(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.expect_memory(tensors),
        }
    }

    /// Does now what the first call would otherwise do: starts the threads, loads the kernels.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn prepare(&self, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => engine.threads.prepare(),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.prepare(Stream::new(stream)),
        }
    }

    /// Runs a checked quantization where the tensors are, or enqueues it on the stream.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn quantize(&self, request: &Quantize, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => cpu::quantize(engine, request),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.quantize(request, Stream::new(stream)),
        }
    }

    /// Runs a checked dequantization where the tensors are, or enqueues it on the stream.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn dequantize(&self, request: &Dequantize, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => cpu::dequantize(engine, request),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.dequantize(request, Stream::new(stream)),
        }
    }

    /// Runs a checked production where the tensors are, or enqueues it on the stream.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn fused(&self, request: &Fused, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => cpu::fused(engine, request),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.fused(request, Stream::new(stream)),
        }
    }
}

/// Fingerprints.
impl Context {
    /// Adds the blocks of checked requests to their sums, or enqueues that on the stream.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn fingerprint(&self, requests: &[fingerprint::Request], stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => cpu::fingerprint(engine, requests),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.fingerprint(requests, Stream::new(stream)),
        }
    }
}

/// Measurements.
impl Context {
    /// Adds the blocks of checked requests to their sums, or enqueues that on the stream.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn measure(&self, requests: &[Measurement], stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => cpu::measure(engine, requests),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.measure(requests, Stream::new(stream)),
        }
    }
}

/// Results that a call left in the memory of the device.
impl Context {
    /// Copies them to host memory when the stream has come here, and waits for that.
    ///
    /// # Safety
    /// `bytes` of the memory of the context's device at `from`, and of host memory at `to`.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub unsafe fn read(&self, from: *const u8, to: *mut u8, bytes: usize, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(_) => {
                // Without bytes the pointers may be any.
                if bytes > 0 {
                    // SAFETY: the caller's promise.
                    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Place::Gpu(device) => unsafe { device.read(from, to, bytes, Stream::new(stream)) },
        }
    }
}

/// What a run through staging memory gets from its caller.
#[derive(Clone, Copy)]
pub struct Staging {
    pub address: *mut u8,
    pub bytes: usize,
}

/// A refit.
impl Context {
    /// Runs or enqueues a checked copy.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn copy(&self, copy: &Copy, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => cpu::copy(engine, copy),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.copy(copy, Stream::new(stream)),
        }
    }

    /// Fails if a run on this stream could not begin: after a fork, or in a capture without having been prepared.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn expect_ready(&self, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.expect_ready(Stream::new(stream)),
        }
    }

    /// Fails, under `FP8RT_CHECK=1`, unless tensors that claim to be on the device are.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn check_memory(&self, tensors: &[Option<&Tensor>]) -> Result<()> {
        match &self.place {
            Place::Host(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.check_memory(tensors),
        }
    }

    /// As `check_memory`, of counters.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn check_health(&self, health: Option<HealthPointer>) -> Result<()> {
        match &self.place {
            Place::Host(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.check_health(health),
        }
    }

    /// Fails unless weights on the host can pass through this staging memory.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn expect_staging(&self, entries: &dyn Entries, staging: Staging, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.expect_staging(entries, staging, Stream::new(stream)),
        }
    }

    /// Reads counters when the stream has come here, and waits for that.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn read_health(&self, health: HealthPointer, stream: *mut c_void) -> Result<Health> {
        match &self.place {
            // SAFETY: a host context has its counters in host memory.
            Place::Host(_) => Ok(unsafe { Health::read(health) }),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.read_health(health, Stream::new(stream)),
        }
    }
}

/// Many weights.
impl Context {
    /// Runs or enqueues checked entries.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn quantize_many(&self, entries: &dyn Entries, manner: Manner, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(engine) => entries.visit(&mut |_, entry| cpu::quantize(engine, &entry.request(manner)?)),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.quantize_many(entries, manner, Stream::new(stream)),
        }
    }

    /// As `quantize_many`, with sources in host memory and staging memory on the device.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn quantize_many_from_host(
        &self,
        entries: &dyn Entries,
        manner: Manner,
        staging: Staging,
        stream: *mut c_void,
    ) -> Result<()> {
        match &self.place {
            Place::Host(_) => self.quantize_many(entries, manner, stream),
            #[cfg(feature = "cuda")]
            Place::Gpu(device) => device.quantize_many_from_host(entries, manner, staging, Stream::new(stream)),
        }
    }
}

/// Tables of weights on a GPU.
#[cfg(feature = "cuda")]
impl Context {
    /// The form in device memory; `None` on the host.
    pub fn upload(&self, entries: &dyn Entries, manner: Manner) -> Result<Option<DeviceTable>> {
        match &self.place {
            Place::Host(_) => Ok(None),
            Place::Gpu(device) => device.upload(entries, manner).map(Some),
        }
    }

    pub fn run_table(&self, table: &DeviceTable, manner: Manner, stream: *mut c_void) -> Result<()> {
        match &self.place {
            Place::Host(_) => crate::error::fail!(Internal, "a table on a device, a context on the host"),
            Place::Gpu(device) => device.run_table(table, manner, Stream::new(stream)),
        }
    }

    pub fn free_table(&self, table: DeviceTable) {
        if let Place::Gpu(device) = &self.place {
            device.free_table(table);
        }
    }
}

#[cfg(feature = "cuda")]
fn open(device: i32) -> Result<Place> {
    Ok(Place::Gpu(Box::new(Device::open(device)?)))
}

#[cfg(not(feature = "cuda"))]
fn open(device: i32) -> Result<Place> {
    crate::error::fail!(
        Unsupported,
        "device is {device}, this build is for host memory only (built without the feature cuda)"
    )
}
