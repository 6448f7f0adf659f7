//! Host speed, through the C ABI: `cargo bench`. Each group holds what it is compared with, so that a ratio is of one run.

use std::ffi::c_void;
use std::hint::black_box;
use std::ptr::{null, null_mut};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fp8rt::cpu::{self, Engine};
use fp8rt::ffi::*;
use fp8rt::quantize::{Operands, Quantize, Rule, Subject};
use fp8rt::recipe::{Formula, Recipe, ScaleFormat};
use fp8rt::tensor::{Description, Dtype, Tensor};

const BF16: u32 = fp8rt_dtype::BF16 as u32;
const F32: u32 = fp8rt_dtype::F32 as u32;
const E4M3: u32 = fp8rt_dtype::E4M3 as u32;

fn matrix<T>(data: &mut [T], dtype: u32, rows: usize, columns: usize) -> fp8rt_tensor {
    fp8rt_tensor {
        data: data.as_mut_ptr().cast(),
        bytes: size_of_val(data) as u64,
        dtype,
        device: -1,
        rank: 2,
        reserved: 0,
        shape: [rows as i64, columns as i64, 0],
        stride: [columns as i64, 1, 0],
    }
}

fn context() -> *mut fp8rt_context {
    let mut context = null_mut();
    // SAFETY: a valid place for the handle.
    assert_eq!(unsafe { fp8rt_context_create(null(), &mut context) }, fp8rt_status::OK);
    context
}

/// A buffer that begins on a page, as the large allocations of engines do.
struct Pages<T> {
    memory: Vec<T>,
    first: usize,
    count: usize,
}

impl<T: Copy> Pages<T> {
    fn new(value: T, count: usize) -> Pages<T> {
        let memory = vec![value; count + 4096];
        let first = memory.as_ptr().align_offset(4096);
        Pages { memory, first, count }
    }

    fn slice(&mut self) -> &mut [T] {
        &mut self.memory[self.first..self.first + self.count]
    }
}

/// bf16 numbers of both signs and a few binades.
fn values(count: usize) -> Vec<u16> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        0x3C00 | (state >> 31 << 15) as u16 | (state >> 16) as u16 & 0x1FF
    };
    (0..count).map(|_| next()).collect()
}

/// Copies with every core, each its part, as many bytes read and written in all as a quantization reads and writes.
fn copy(from: &[u8], to: &mut [u8], threads: usize) {
    let part = from.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
}

fn quantize_weight(criterion: &mut Criterion) {
    let (n, k) = (4096, 14336);
    let (mut weight, mut codes) = (Pages::new(0u16, n * k), Pages::new(0u8, n * k));
    weight.slice().copy_from_slice(&values(n * k));
    let mut scales = vec![0f32; n / 128 * (k / 128)];
    let context = context();
    let mut group = criterion.benchmark_group("quantize_weight_4096x14336");
    group.throughput(Throughput::Bytes(3 * (n * k) as u64)).sample_size(20);
    for (name, recipe) in [("nemo_rl", 3), ("vllm", 1)] {
        // SAFETY: zeros are a valid descriptor.
        let mut desc: fp8rt_quantize_desc = unsafe { std::mem::zeroed() };
        (desc.struct_size, desc.recipe) = (size_of_val(&desc) as u32, recipe);
        let weight = matrix(weight.slice(), BF16, n, k);
        let codes = matrix(codes.slice(), E4M3, n, k);
        let scales = matrix(&mut scales, F32, n / 128, k / 128);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // SAFETY: live handle and tensors.
                let status =
                    unsafe { fp8rt_quantize_weight(context, &desc, &weight, &codes, &scales, null_mut(), null_mut()) };
                assert_eq!(status, fp8rt_status::OK);
            })
        });
    }
    let threads = std::thread::available_parallelism().unwrap().get();
    let (mut from, mut to) = (Pages::new(1u8, n * k * 3 / 2), Pages::new(0u8, n * k * 3 / 2));
    group.bench_function("copy", |bencher| {
        bencher.iter(|| copy(black_box(from.slice()), black_box(to.slice()), threads))
    });
    group.finish();
}

fn linear(criterion: &mut Criterion) {
    let (n, k) = (4096, 4096);
    let context = context();
    let mut weight: Vec<u8> = values(n * k).iter().map(|&bits| (bits as u8) & 0xF7).collect();
    let mut scales = vec![1f32; n / 128 * (k / 128)];
    let mut group = criterion.benchmark_group("linear_4096x4096");
    group.sample_size(20);
    for m in [1, 4, 16, 64, 256] {
        // SAFETY: zeros are a valid descriptor.
        let mut desc: fp8rt_linear_desc = unsafe { std::mem::zeroed() };
        desc.struct_size = size_of_val(&desc) as u32;
        (desc.max_m, desc.n, desc.k) = (m as i64, n as i64, k as i64);
        (desc.input_dtype, desc.output_dtype) = (BF16, BF16);
        let (mut plan, mut bytes) = (null_mut(), 0u64);
        // SAFETY: live handle, valid descriptor and places.
        unsafe {
            assert_eq!(fp8rt_linear_plan_create(context, &desc, &mut plan), fp8rt_status::OK);
            assert_eq!(fp8rt_linear_plan_workspace(plan, m as i64, &mut bytes), fp8rt_status::OK);
        }
        let (mut x, mut y) = (values(m * k), vec![0u16; m * n]);
        let mut workspace = vec![0u8; bytes as usize + 256];
        let aligned = workspace.as_mut_ptr().wrapping_add(workspace.as_ptr().align_offset(256)).cast::<c_void>();
        let (x, y) = (matrix(&mut x, BF16, m, k), matrix(&mut y, BF16, m, n));
        let weight = matrix(&mut weight, E4M3, n, k);
        let scales = matrix(&mut scales, F32, n / 128, k / 128);
        group.throughput(Throughput::Elements((m * n * k) as u64));
        group.bench_function(format!("m{m}"), |bencher| {
            bencher.iter(|| {
                // SAFETY: live handle and tensors.
                let status =
                    unsafe { fp8rt_linear(plan, &x, &weight, &scales, null(), &y, aligned, bytes, null_mut()) };
                assert_eq!(status, fp8rt_status::OK);
            })
        });
    }
    group.finish();
}

/// One group of 128: the call through the C ABI, and its work alone, already converted and checked.
fn call(criterion: &mut Criterion) {
    let context = context();
    let (mut x, mut codes, mut scales) = (values(128), vec![0u8; 128], vec![0f32; 1]);
    let (x, codes, scales) =
        (matrix(&mut x, BF16, 1, 128), matrix(&mut codes, E4M3, 1, 128), matrix(&mut scales, F32, 1, 1));
    let mut group = criterion.benchmark_group("quantize_activation_1x128");
    group.bench_function("call", |bencher| {
        bencher.iter(|| {
            // SAFETY: live handle and tensors.
            unsafe {
                fp8rt_quantize_activation(context, null(), black_box(&x), &codes, &scales, null_mut(), null_mut())
            }
        })
    });
    let checked = |name, tensor: &fp8rt_tensor, dtype| {
        let (data, bytes, shape, stride) = (tensor.data.cast(), tensor.bytes, &tensor.shape, &tensor.stride);
        Tensor::new(name, &Description { data, bytes, dtype, device: -1, rank: 2, shape, stride }).unwrap()
    };
    let (source, codes) = (checked("activation", &x, Dtype::Bf16), checked("codes", &codes, Dtype::E4m3));
    let scales = checked("scales", &scales, Dtype::F32);
    let operands = Operands { source: &source, codes: Some(&codes), scales: &scales };
    let rule = Rule::Compute(Formula::new(Recipe::Vllm, ScaleFormat::Fp32, None));
    let request = Quantize::new(Subject::Activation, operands, ScaleFormat::Fp32, rule, None).unwrap();
    let engine = Engine::new(0).unwrap();
    group.bench_function("work", |bencher| bencher.iter(|| cpu::quantize(&engine, black_box(&request)).unwrap()));
}

criterion_group!(benches, quantize_weight, linear, call);
criterion_main!(benches);
