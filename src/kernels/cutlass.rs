//! CUTLASS's kernels: their code, and the C++ that fills their parameters. The structs are those of
//! `src/kernels/cutlass/problem.h`; both sides assert the sizes.

mod kernels;

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;

use crate::error::{Kind, Result, fail, make};

pub use kernels::{GEMMS, Gemm, Operands, Output};

include!(concat!(env!("OUT_DIR"), "/cutlass.rs"));

/// y[m, n] = x[m, k] . w[n, k]^T.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub codes: *const u8,
    /// One column after the other.
    pub scales: *const f32,
    pub weight: *const u8,
    /// Row-major and packed.
    pub weight_scales: *const f32,
    pub output: *mut c_void,
    /// Between rows, in elements. In bytes they are multiples of 16.
    pub codes_stride: i64,
    pub weight_stride: i64,
    pub output_stride: i64,
    /// Between columns: a multiple of 4, at least `readable_rows`.
    pub scales_stride: i64,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// Of codes and scales, at least m.
    pub readable_rows: u32,
    /// Of the device.
    pub multiprocessors: u32,
    /// In which tiles are taken: 0 as CUTLASS thinks best, 1 along the rows of y first, 2 along its columns.
    pub order: u32,
    /// Tiles that are taken side by side across that order: 1, 2, 4 or 8.
    pub swizzle: u32,
    pub reserved: u32,
}

/// How a kernel is launched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    pub grid: [u32; 3],
    pub cluster: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    /// Of the kernel's one parameter.
    pub parameter_bytes: u32,
    /// Of its pipeline, for a person.
    pub stages: u32,
}

const MOST_PARAMETERS: usize = 2560;

/// Room for the one parameter of any of the kernels. It is not cleared: a launch reads what was filled.
#[repr(C, align(128))]
pub struct Parameters(MaybeUninit<[u8; MOST_PARAMETERS]>);

impl Parameters {
    pub fn empty() -> Parameters {
        Parameters(MaybeUninit::uninit())
    }

    pub fn address(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }
}

const _: () = {
    assert!(size_of::<Problem>() == 104 && size_of::<Launch>() == 40);
    assert!(align_of::<Parameters>() == 128 && size_of::<Parameters>() == MOST_PARAMETERS);
};

/// `fp8rt_cutlass_fill`.
type Fill = unsafe extern "C" fn(*const Problem, *const c_void, *mut c_void, *mut Launch) -> i32;

/// One of [`GEMMS`] as the build made it.
pub struct Compiled {
    fill: Fill,
    /// Of the one function in its code.
    pub name: &'static CStr,
    pub code: &'static [u8],
}

impl Compiled {
    /// All of a launch but its grid.
    pub fn sizes(&self) -> Launch {
        let mut launch = Launch::default();
        // SAFETY: without a problem only the launch is written.
        unsafe { (self.fill)(std::ptr::null(), std::ptr::null(), std::ptr::null_mut(), &mut launch) };
        launch
    }

    /// Fills the parameters of a launch. Nothing is read or written but these.
    ///
    /// # Safety
    /// `encode` is the driver's `cuTensorMapEncodeTiled`.
    pub unsafe fn fill(&self, problem: &Problem, encode: *const c_void, parameters: &mut Parameters) -> Result<Launch> {
        let mut launch = Launch::default();
        // SAFETY: the room is aligned and large enough, which problem.h asserts; the caller vouches for `encode`.
        let result = unsafe { (self.fill)(problem, encode, parameters.address(), &mut launch) };
        if result == 0 { Ok(launch) } else { self.refuse(result, problem) }
    }

    #[cold]
    fn refuse(&self, result: i32, problem: &Problem) -> Result<Launch> {
        if result > 0 {
            return Err(make(Kind::Cuda(result), move || format!("cuTensorMapEncodeTiled failed with {result}")));
        }
        let what = match result {
            -1 => "an extent",
            -2 => "a stride",
            _ => "an alignment",
        };
        let (name, problem) = (self.name, *problem);
        fail!(Internal, "{} does not take {what} of {problem:?}", name.to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::slice::from_raw_parts;

    use super::*;

    /// What an encoder was asked for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Map {
        address: usize,
        extents: Vec<u64>,
        strides: Vec<u64>,
        tile: Vec<u32>,
    }

    thread_local! {
        static MAPS: RefCell<Vec<Map>> = const { RefCell::new(Vec::new()) };
        static RESULT: Cell<i32> = const { Cell::new(0) };
    }

    /// Stands for the driver's.
    unsafe extern "C" fn record(
        map: *mut [u64; 16],
        _element: u32,
        rank: u32,
        address: usize,
        extents: *const u64,
        strides: *const u64,
        tile: *const u32,
        _steps: *const u32,
        _interleave: u32,
        _swizzle: u32,
        _promotion: u32,
        _fill: u32,
    ) -> i32 {
        let rank = rank as usize;
        // SAFETY: the arrays of a map of this rank.
        let recorded = unsafe {
            map.write([u64::MAX; 16]);
            Map {
                address,
                extents: from_raw_parts(extents, rank).to_vec(),
                strides: from_raw_parts(strides, rank - 1).to_vec(),
                tile: from_raw_parts(tile, rank).to_vec(),
            }
        };
        MAPS.with_borrow_mut(|maps| maps.push(recorded));
        RESULT.get()
    }

    const CODES: usize = 0x10_0000;
    const SCALES: usize = 0x20_0000;
    const WEIGHT: usize = 0x30_0000;
    const OUTPUT: usize = 0x50_0000;

    fn problem([m, n, k]: [u32; 3]) -> Problem {
        let rows = m.next_multiple_of(16);
        Problem {
            codes: CODES as *const u8,
            scales: SCALES as *const f32,
            weight: WEIGHT as *const u8,
            weight_scales: 0x40_0004 as *const f32,
            output: OUTPUT as *mut c_void,
            codes_stride: i64::from(k.next_multiple_of(16) + 16),
            weight_stride: i64::from(k.next_multiple_of(16) + 32),
            output_stride: i64::from(n.next_multiple_of(8) + 8),
            scales_stride: i64::from(rows + 4),
            m,
            n,
            k,
            readable_rows: rows,
            multiprocessors: 132,
            order: 0,
            swizzle: 0,
            reserved: 0,
        }
    }

    fn fill(compiled: &Compiled, problem: &Problem) -> Result<(Launch, Vec<Map>)> {
        MAPS.with_borrow_mut(Vec::clear);
        let encode = record as *const c_void;
        // SAFETY: has the signature of the driver's function.
        let launch = unsafe { compiled.fill(problem, encode, &mut Parameters::empty()) }?;
        Ok((launch, MAPS.with_borrow(Vec::clone)))
    }

    fn map_at(maps: &[Map], address: usize) -> Option<&Map> {
        maps.iter().find(|map| map.address == address)
    }

    const SHAPES: [[u32; 3]; 6] =
        [[1, 6144, 4096], [3, 72, 128], [16, 128, 14336], [77, 6144, 4096], [4096, 28672, 4096], [130, 136, 100]];

    /// Whether this kernel takes it.
    fn takes(gemm: &Gemm, [_, n, k]: [u32; 3]) -> bool {
        gemm.architecture != 120 || (n % 128 == 0 && k % 128 == 0)
    }

    #[test]
    fn every_kernel_has_code_and_sizes() {
        assert_eq!(COMPILED.len(), GEMMS.len());
        for (gemm, compiled) in GEMMS.iter().zip(COMPILED) {
            assert_eq!(compiled.name.to_str().expect("ASCII"), format!("fp8rt_cutlass_{}", gemm.name()));
            let sizes = compiled.sizes();
            let swapped = gemm.operands == Operands::Swapped;
            let [rows, columns] = gemm.cluster;
            assert_eq!(sizes.cluster, if swapped { [columns, rows, 1] } else { [rows, columns, 1] });
            assert!(sizes.shared_bytes <= 232_448 && sizes.stages >= 2, "{sizes:?}");
            assert!((256..=MOST_PARAMETERS as u32).contains(&sizes.parameter_bytes), "{sizes:?}");
            assert_eq!(sizes.grid, [0; 3]);
            assert!(super::super::expand(compiled.code).expect("it expands").starts_with(b"\x7fELF"));
        }
    }

    /// Bytes of the one parameter of the one kernel in this code, from what ptxas notes of it (EIATTR_KPARAM_INFO).
    /// Some architectures have two forms of the code, and two notes.
    fn parameter_bytes(code: &[u8]) -> Vec<u32> {
        const NOTE: [u8; 4] = [0x04, 0x17, 12, 0];
        let notes = (0..code.len() - 16).filter(|&at| code[at..].starts_with(&NOTE));
        let word = |at: usize| u32::from_le_bytes(code[at..at + 4].try_into().expect("four bytes"));
        notes.map(|at| word(at + 12) >> 18).collect()
    }

    #[test]
    fn the_device_takes_what_the_host_fills() {
        for compiled in COMPILED {
            let code = super::super::expand(compiled.code).expect("it expands");
            let mut bytes = parameter_bytes(&code);
            bytes.dedup();
            assert_eq!(bytes, [compiled.sizes().parameter_bytes], "{:?}", compiled.name);
        }
    }

    #[test]
    fn maps_describe_the_operands() {
        for (gemm, compiled) in GEMMS.iter().zip(COMPILED) {
            for shape in SHAPES.into_iter().filter(|&shape| takes(gemm, shape)) {
                let problem = problem(shape);
                let (_, maps) = fill(compiled, &problem).expect("it takes the shape");
                let [m, n, k] = shape.map(u64::from);
                // This one takes the rows of y for those of x.
                let rows = if gemm.architecture == 100 { m } else { u64::from(problem.readable_rows) };
                let bytes = if gemm.output == Output::F32 { 4 } else { 2 };
                let codes = map_at(&maps, CODES).expect("of x");
                assert_eq!(codes.extents[..2], [k, rows]);
                assert_eq!(codes.strides[0], problem.codes_stride as u64);
                let weight = map_at(&maps, WEIGHT).expect("of w");
                assert_eq!((&weight.extents[..2], weight.strides[0]), (&[k, n][..], problem.weight_stride as u64));
                let output = map_at(&maps, OUTPUT).expect("of y");
                assert_eq!(output.extents[..2], [n, m]);
                assert_eq!(output.strides[0], bytes * problem.output_stride as u64);
                if let Some(scales) = map_at(&maps, SCALES) {
                    assert_eq!(scales.extents[..2], [rows, k.div_ceil(128)]);
                    assert_eq!(scales.strides[0], 4 * problem.scales_stride as u64);
                    assert_eq!(scales.tile[..2], [gemm.rows, 1]);
                }
                // Thread blocks of a cluster load a part each.
                let [cluster_rows, cluster_columns] = gemm.cluster;
                assert_eq!(codes.tile[..2], [128, gemm.rows / cluster_columns], "{}", gemm.name());
                assert_eq!(weight.tile[..2], [128, gemm.columns / cluster_rows], "{}", gemm.name());
            }
        }
    }

    #[test]
    fn grids_cover_the_tiles_once() {
        for (gemm, compiled) in GEMMS.iter().zip(COMPILED) {
            for shape in SHAPES.into_iter().filter(|&shape| takes(gemm, shape)) {
                let (launch, _) = fill(compiled, &problem(shape)).expect("it takes the shape");
                let [cluster_rows, cluster_columns] = gemm.cluster;
                let tiles = shape[0].div_ceil(gemm.rows).next_multiple_of(cluster_rows)
                    * shape[1].div_ceil(gemm.columns).next_multiple_of(cluster_columns);
                let blocks = launch.grid.iter().product::<u32>();
                // Hopper's take tiles in turn; others have a thread block for each.
                let most = if gemm.architecture == 90 { 132 } else { u32::MAX };
                assert_eq!(blocks, tiles.min(most), "{} {shape:?}", gemm.name());
                let whole = launch.grid.iter().zip(launch.cluster).all(|(grid, cluster)| grid % cluster == 0);
                assert!(whole, "{} {launch:?}", gemm.name());
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_take() {
        type Change = fn(&mut Problem);
        let changes: [Change; 10] = [
            |problem| problem.m = 0,
            |problem| problem.n = 0,
            |problem| problem.k = 0,
            |problem| problem.readable_rows = problem.m - 1,
            |problem| problem.codes_stride += 8,
            |problem| problem.weight_stride = i64::from(problem.k) - 16,
            |problem| problem.output_stride += 1,
            |problem| problem.scales_stride += 2,
            |problem| problem.codes = (CODES + 8) as *const u8,
            |problem| problem.output = (OUTPUT + 4) as *mut c_void,
        ];
        for compiled in COMPILED {
            for (index, change) in changes.iter().enumerate() {
                let mut problem = problem([77, 6144, 4096]);
                change(&mut problem);
                let error = fill(compiled, &problem).expect_err("refused");
                assert!(error.message.contains("does not take"), "change {index}: {}", error.message);
            }
        }
    }

    #[test]
    fn tells_what_the_driver_says() {
        RESULT.set(801);
        for compiled in COMPILED {
            let error = fill(compiled, &problem([77, 6144, 4096])).expect_err("failed");
            assert_eq!(error.kind, Kind::Cuda(801));
        }
        RESULT.set(0);
        assert!(fill(&COMPILED[0], &problem([77, 6144, 4096])).is_ok());
    }
}
