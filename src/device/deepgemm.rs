//! DeepGEMM's kernel: its code, tensor maps and launch. Which tile is the backend's to say.

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::error::Result;
use crate::kernels::{DEEPGEMM, DEPTH, MOST_K, PROCESSORS, TILES};

use super::driver::check;
use super::linear::{PREPARE, Product};
use super::{Device, Loaded, Size, Stream};

/// A matrix that the copy engine reads or writes in boxes: rows of `inner` elements.
struct Map {
    kind: sys::CUtensorMapDataType,
    element_bytes: usize,
    address: *mut c_void,
    inner: usize,
    outer: usize,
    /// Between rows, in elements.
    stride: usize,
    box_inner: u32,
    box_outer: u32,
    /// Bytes; 0: none.
    swizzle: u32,
}

/// Where the driver copies a parameter from.
fn address<T>(parameter: &T) -> *mut c_void {
    (&raw const *parameter).cast_mut().cast()
}

impl Device {
    /// Loads the code of a tile. Not while a stream of this thread is captured.
    pub fn prepare_tile(&self, tile: usize, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.expect_tile(tile, stream)?;
        self.load_tile(tile).map(drop)
    }

    /// Fails if the code of a tile is not loaded and, because the stream is captured, may not be.
    pub fn expect_tile(&self, tile: usize, stream: Stream) -> Result<()> {
        self.expect_loadable(&self.tiles[tile], stream, PREPARE)
    }

    fn load_tile(&self, tile: usize) -> Result<&Loaded> {
        let place = &self.tiles[tile];
        if let Some(loaded) = place.get() {
            return Ok(loaded);
        }
        let (name, code) = DEEPGEMM[tile];
        self.load_code(place, code, [name].into_iter(), TILES[tile].shared_bytes(MOST_K))
    }

    /// Enqueues the product of one tile of [`TILES`], which `expect_tile` let pass. K is at most [`MOST_K`], N a multiple of
    /// 8: the kernel traps otherwise.
    pub fn deepgemm(&self, tile: usize, product: &Product, stream: Stream) -> Result<()> {
        let loaded = self.load_tile(tile)?;
        let maps = self.maps(tile, product)?;
        let tile = &TILES[tile];
        let (m, n, k) = (product.m as u32, product.n as u32, product.k as u32);
        // Of grouped products, which this is not.
        let layout = std::ptr::null::<c_void>();
        let [codes, weight, output, scales] = &maps;
        let mut parameters = [
            address(&product.weight_scales),
            address(&layout),
            address(&m),
            address(&n),
            address(&k),
            address(codes),
            address(weight),
            address(output),
            address(scales),
        ];
        let tiles = u64::from(m.div_ceil(tile.rows)) * u64::from(n.div_ceil(tile.columns));
        let blocks =
            (tiles.min(u64::from(PROCESSORS * tile.per_processor)) as u32).next_multiple_of(tile.cluster_size());
        let size = Size {
            blocks: [blocks, 1, 1],
            threads: tile.threads(),
            shared_bytes: tile.shared_bytes(k),
            cluster: [tile.cluster_size(), 1, 1],
        };
        // SAFETY: the parameters of DeepGEMM's kernel, in its order.
        unsafe { self.launch_function(loaded.functions[0].1, size, &mut parameters, stream) }
    }

    /// Maps of the codes of x and w, of y, and of the scales of x.
    fn maps(&self, tile: usize, product: &Product) -> Result<[sys::CUtensorMap; 4]> {
        use sys::CUtensorMapDataType_enum as Type;
        let tile = &TILES[tile];
        let Product { m, n, k, .. } = *product;
        let rows = product.readable_rows.min(m.next_multiple_of(tile.rows as usize));
        let codes = |address: *const u8, outer, stride, box_outer| Map {
            kind: Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            element_bytes: 1,
            address: address.cast_mut().cast(),
            inner: k,
            outer,
            stride,
            box_inner: DEPTH,
            box_outer,
            swizzle: 128,
        };
        let output = Map {
            kind: Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            element_bytes: 2,
            address: product.output.cast(),
            inner: n,
            outer: m,
            stride: product.output_stride,
            box_inner: tile.output_swizzle() / 2,
            box_outer: tile.rows,
            swizzle: tile.output_swizzle(),
        };
        let scales = Map {
            kind: Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            element_bytes: 4,
            address: product.scales.cast_mut().cast(),
            // Not the padding, which a caller's memory may lack: beyond these the copy engine reads nothing.
            inner: rows,
            outer: k.div_ceil(DEPTH as usize),
            stride: product.scales_stride,
            box_inner: tile.rows,
            box_outer: 1,
            swizzle: 0,
        };
        Ok([
            self.encode(&codes(product.codes, rows, product.codes_stride, tile.rows))?,
            self.encode(&codes(product.weight, n, product.weight_stride, tile.columns))?,
            self.encode(&output)?,
            self.encode(&scales)?,
        ])
    }

    fn encode(&self, map: &Map) -> Result<sys::CUtensorMap> {
        use sys::CUtensorMapSwizzle_enum as Swizzle;
        let swizzle = match map.swizzle {
            0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        let extents = [map.inner as u64, map.outer as u64];
        let stride = (map.stride * map.element_bytes) as u64;
        let (boxes, steps) = ([map.box_inner, map.box_outer], [1, 1]);
        // SAFETY: arrays of rank 2, and one stride less.
        let result = unsafe {
            (self.driver.encode_tensor_map)(
                &mut encoded,
                map.kind,
                2,
                map.address,
                extents.as_ptr(),
                &stride,
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(result, "cuTensorMapEncodeTiled")?;
        Ok(encoded)
    }
}
