//! CUTLASS's kernels: their code and launch. The C++ that was linked fills their parameters. Which one is the backend's to
//! say.

use std::ffi::c_void;

use crate::error::Result;
use crate::kernels::cutlass::{COMPILED, Parameters, Problem};

use super::linear::{PREPARE, Product};
use super::{Device, Loaded, Size, Stream};

impl Device {
    /// Loads the code of a kernel. Not while a stream of this thread is captured.
    pub fn prepare_cutlass(&self, kernel: usize, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.expect_cutlass(kernel, stream)?;
        self.load_cutlass(kernel).map(drop)
    }

    /// Fails if the code of a kernel is not loaded and, because the stream is captured, may not be.
    pub fn expect_cutlass(&self, kernel: usize, stream: Stream) -> Result<()> {
        self.expect_loadable(&self.cutlass[kernel], stream, PREPARE)
    }

    fn load_cutlass(&self, kernel: usize) -> Result<&Loaded> {
        let place = &self.cutlass[kernel];
        if let Some(loaded) = place.get() {
            return Ok(loaded);
        }
        let compiled = &COMPILED[kernel];
        self.load_code(place, compiled.code, [compiled.name].into_iter(), compiled.sizes().shared_bytes)
    }

    /// Enqueues the product of one of CUTLASS's kernels, which `expect_cutlass` let pass.
    pub fn multiply_with_cutlass(&self, kernel: usize, product: &Product, stream: Stream) -> Result<()> {
        let loaded = self.load_cutlass(kernel)?;
        let problem = Problem {
            codes: product.codes,
            scales: product.scales,
            weight: product.weight,
            weight_scales: product.weight_scales,
            output: product.output.cast(),
            codes_stride: product.codes_stride as i64,
            weight_stride: product.weight_stride as i64,
            output_stride: product.output_stride as i64,
            scales_stride: product.scales_stride as i64,
            m: product.m as u32,
            n: product.n as u32,
            k: product.k as u32,
            readable_rows: product.readable_rows as u32,
            multiprocessors: self.processors,
            order: 0,
            swizzle: 0,
            reserved: 0,
        };
        let mut parameters = Parameters::empty();
        let encode = self.driver.encode_tensor_map as *const c_void;
        // SAFETY: the driver's function.
        let launch = unsafe { COMPILED[kernel].fill(&problem, encode, &mut parameters) }?;
        let size = Size {
            blocks: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            cluster: launch.cluster,
        };
        // SAFETY: the kernel's one parameter, filled for it.
        unsafe { self.launch_function(loaded.functions[0].1, size, &mut [parameters.address()], stream) }
    }
}
