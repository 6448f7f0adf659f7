//! The fast path against the oracle: every byte, for every instruction set of this processor.

use std::sync::atomic::AtomicU64;

use crate::error::Result;
use crate::linear::{LinearOperands, LinearRun, LinearSpec};
use crate::quantize::{Dequantize, HealthCounters, HealthPointer, Operands, Quantize, Rule, ScalesLayout, Subject};
use crate::recipe::{Formula, Recipe, ScaleFormat};
use crate::reference;
use crate::tensor::{Description, Dtype, Tensor};

use super::{Engine, Isa, Threads, dequantize, linear, quantize};

const RECIPES: [Recipe; 4] = [Recipe::Vllm, Recipe::DeepGemm, Recipe::NemoRl, Recipe::Te];
const FORMATS: [ScaleFormat; 3] = [ScaleFormat::Fp32, ScaleFormat::Pow2, ScaleFormat::Ue8m0Packed];
const FLOATS: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

/// Memory of a tensor, 256-byte aligned, with a view of it.
#[derive(Clone)]
struct Memory {
    words: Vec<[u64; 32]>,
    dtype: Dtype,
    shape: Vec<i64>,
    stride: Vec<i64>,
}

impl Memory {
    fn new(dtype: Dtype, shape: &[usize], stride: &[usize], elements: usize) -> Memory {
        let words = vec![[0xA5A5_A5A5_A5A5_A5A5; 32]; (elements * dtype.bytes()).div_ceil(256) + 1];
        let signed = |values: &[usize]| values.iter().map(|&value| value as i64).collect();
        Memory { words, dtype, shape: signed(shape), stride: signed(stride) }
    }

    fn matrix(dtype: Dtype, rows: usize, columns: usize, stride: usize) -> Memory {
        Memory::new(dtype, &[rows, columns], &[stride, 1], rows * stride)
    }

    fn address(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }

    fn view(&mut self, name: &'static str) -> Tensor {
        let pad = |values: &[i64]| std::array::from_fn(|axis| values.get(axis).copied().unwrap_or(0));
        let (shape, stride, rank) = (&pad(&self.shape), &pad(&self.stride), self.shape.len() as u32);
        let (dtype, bytes, device) = (self.dtype, self.words.len() as u64 * 256, -1);
        Tensor::new(name, &Description { data: self.address(), bytes, dtype, device, rank, shape, stride }).unwrap()
    }

    fn fill(&mut self, mut bits: impl FnMut() -> u32) {
        let (size, count) = (self.dtype.bytes(), self.words.len() * 256 / self.dtype.bytes());
        for index in 0..count {
            let at = self.address().wrapping_add(index * size);
            // SAFETY: within the words.
            unsafe {
                match size {
                    1 => at.write(bits() as u8),
                    2 => at.cast::<u16>().write(bits() as u16),
                    _ => at.cast::<u32>().write(bits()),
                }
            }
        }
    }
}

/// A generator of bits, good enough to reach every exponent.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32 ^ (self.0 >> 20) as u32
    }

    /// A number of ordinary size, as bits of the dtype.
    fn ordinary(&mut self, dtype: Dtype) -> u32 {
        let value = (self.next() as i32 as f32) * 2f32.powi(-33);
        match dtype {
            Dtype::Bf16 => crate::formats::half::bf16_from_f32(value) as u32,
            Dtype::F16 => crate::formats::half::f16_from_f32(value) as u32,
            _ => value.to_bits(),
        }
    }
}

fn engines() -> Vec<Engine> {
    if cfg!(miri) {
        // An interpreter has no vectors, and threads have tests of their own.
        return vec![Engine { isa: Isa::Baseline, threads: Threads::new(1).unwrap() }];
    }
    let engine = |isa: Isa, count| Engine { isa, threads: Threads::new(count).unwrap() };
    let mut engines: Vec<_> = Isa::available().into_iter().map(|isa| engine(isa, 1)).collect();
    engines.push(engine(*Isa::available().last().unwrap(), 3));
    engines
}

#[derive(Clone)]
struct QuantizeCase {
    subject: Subject<'static>,
    source: Memory,
    codes: Memory,
    scales: Memory,
    format: ScaleFormat,
    rule: Rule,
}

impl QuantizeCase {
    /// Runs it on copies of the memory; gives codes, scales and health.
    fn run(&self, body: impl FnOnce(&Quantize)) -> Result<(Memory, Memory, [u64; 4])> {
        let QuantizeCase { mut source, mut codes, mut scales, .. } = self.clone();
        let health: HealthCounters = Default::default();
        let (source, code_view, scale_view) = (source.view("source"), codes.view("codes"), scales.view("scales"));
        let operands = Operands { source: &source, codes: Some(&code_view), scales: &scale_view };
        body(&Quantize::new(self.subject, operands, self.format, self.rule, Some(HealthPointer((&health).into())))?);
        Ok((codes, scales, health.map(AtomicU64::into_inner)))
    }

    fn compare(&self, what: &str) {
        let want = self.run(reference::quantize).unwrap();
        for engine in engines() {
            let got = self.run(|request| quantize(&engine, request).unwrap()).unwrap();
            let context = format!("{what} {:?} {} threads", engine.isa, engine.threads.count());
            assert!(got.0.words == want.0.words, "codes: {context}");
            assert!(got.1.words == want.1.words, "scales: {context}");
            assert_eq!(got.2, want.2, "health: {context}");
        }
    }
}

fn case(subject: Subject<'static>, shape: &[usize], dtype: Dtype, format: ScaleFormat, rule: Rule) -> QuantizeCase {
    let (rank, k) = (shape.len(), shape[shape.len() - 1]);
    let (rows, pitch) = (shape[rank - 2], k + 5);
    let strides = [rows * pitch, pitch, 1];
    let experts = if rank == 3 { shape[0] } else { 1 };
    let matrix = |dtype| Memory::new(dtype, shape, &strides[3 - rank..], experts * rows * pitch);
    let column_major = matches!(subject, Subject::Activation);
    let layout = ScalesLayout::new(&subject, [experts, rows, k], format, column_major).unwrap();
    let scales = Memory::new(layout.dtype, &layout.shape[3 - rank..], &layout.stride[3 - rank..], layout.bytes / 4);
    QuantizeCase { subject, source: matrix(dtype), codes: matrix(Dtype::E4m3), scales, format, rule }
}

/// All; one under an interpreter, where the formulas have tests of their own.
fn recipes() -> &'static [Recipe] {
    if cfg!(miri) { &RECIPES[2..3] } else { &RECIPES }
}

const WEIGHT: Subject = Subject::Weight { part_rows: &[] };
const MERGED: Subject = Subject::Weight { part_rows: &[100, 0, 33] };

/// Subjects with their shapes; fewer under an interpreter.
fn shapes() -> Vec<(Subject<'static>, &'static [usize])> {
    if cfg!(miri) {
        return vec![(WEIGHT, &[2, 130]), (Subject::Activation, &[2, 5])];
    }
    vec![
        (WEIGHT, &[129, 300]),
        (WEIGHT, &[2, 130, 1200]),
        (MERGED, &[133, 64]),
        (WEIGHT, &[0, 5]),
        (Subject::Activation, &[5, 1300]),
        (Subject::Activation, &[300, 192]),
        (Subject::Activation, &[3, 0]),
    ]
}

#[test]
fn quantize_equals_the_oracle() {
    let mut random = Random(1);
    for (subject, shape) in shapes() {
        for dtype in FLOATS {
            for format in FORMATS {
                for recipe in recipes() {
                    let rule = Rule::Compute(Formula::new(*recipe, format, None));
                    let mut case = case(subject, shape, dtype, format, rule);
                    case.source.fill(|| random.ordinary(dtype));
                    case.compare(&format!("ordinary {shape:?} {dtype} {format:?} {recipe:?}"));
                    // Any bits at all: NaN, infinities, subnormals, every exponent.
                    case.source.fill(|| random.next());
                    case.compare(&format!("any bits {shape:?} {dtype} {format:?} {recipe:?}"));
                }
            }
        }
    }
}

#[test]
fn quantize_with_given_scales_equals_the_oracle() {
    let mut random = Random(2);
    for (subject, shape) in shapes() {
        for dtype in FLOATS {
            for format in FORMATS {
                let mut case = case(subject, shape, dtype, format, Rule::Given);
                case.source.fill(|| random.next());
                case.scales.fill(|| random.next());
                case.compare(&format!("given {shape:?} {dtype} {format:?}"));
                case.source.fill(|| random.ordinary(dtype));
                case.scales.fill(|| 0x3B00_0000 | random.next() >> 9);
                case.compare(&format!("given {shape:?} {dtype} {format:?}, ordinary"));
            }
        }
    }
}

#[test]
fn dequantize_equals_the_oracle() {
    let mut random = Random(3);
    for (subject, shape) in shapes() {
        for dtype in FLOATS {
            for format in FORMATS {
                let mut case = case(subject, shape, dtype, format, Rule::Given);
                case.codes.fill(|| random.next());
                case.scales.fill(|| random.next());
                let run = |body: &dyn Fn(&Dequantize)| {
                    let QuantizeCase { mut source, mut codes, mut scales, .. } = case.clone();
                    let (codes, scales, output) = (codes.view("codes"), scales.view("scales"), source.view("output"));
                    body(&Dequantize::new(subject, &codes, &scales, format, &output).unwrap());
                    values(&source)
                };
                let want = run(&reference::dequantize);
                for engine in engines() {
                    let got = run(&|request| dequantize(&engine, request).unwrap());
                    assert!(got == want, "{shape:?} {dtype} {format:?} {:?}", engine.isa);
                }
            }
        }
    }
}

/// The memory with every NaN made the same: its sign and payload are nobody's promise.
fn values(memory: &Memory) -> Vec<u32> {
    let bytes: Vec<u8> = memory.words.iter().flatten().flat_map(|word| word.to_ne_bytes()).collect();
    let two = |chunk: &[u8]| u16::from_ne_bytes([chunk[0], chunk[1]]) as u32;
    match memory.dtype {
        Dtype::Bf16 => bytes.chunks(2).map(two).map(|b| if b & 0x7FFF > 0x7F80 { 0x7FC0 } else { b }).collect(),
        Dtype::F16 => bytes.chunks(2).map(two).map(|b| if b & 0x7FFF > 0x7C00 { 0x7E00 } else { b }).collect(),
        _ => {
            let four = |chunk: &[u8]| u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            bytes.chunks(4).map(four).map(|b| if b & 0x7FFF_FFFF > 0x7F80_0000 { 0x7FC0_0000 } else { b }).collect()
        }
    }
}

struct LinearCase {
    spec: LinearSpec,
    input: Memory,
    input_scales: Option<Memory>,
    weight: Memory,
    weight_scales: Memory,
    bias: Option<Memory>,
    output: Memory,
}

impl LinearCase {
    /// A linear of `m` rows; prequantized if `dtype` is `E4m3`.
    fn new(m: usize, n: usize, k: usize, dtype: Dtype, part_rows: &[i64], random: &mut Random) -> LinearCase {
        let formats = [FORMATS[m % 3], FORMATS[n % 2]];
        let output_dtype = FLOATS[(m + n) % 3];
        let bias_dtype = k.is_multiple_of(2).then_some(FLOATS[k / 2 % 3]);
        let spec = LinearSpec {
            max_m: m + 1,
            n,
            k,
            input_dtype: if dtype == Dtype::E4m3 { Dtype::Bf16 } else { dtype },
            output_dtype,
            bias_dtype,
            formula: Formula::new(Recipe::Vllm, formats[0], None),
            activation_format: formats[0],
            activation_column_major: true,
            weight_format: formats[1],
            part_rows: part_rows.to_vec(),
            input_stride: k + 3,
            weight_stride: k + 7,
            output_stride: n + 1,
            batch_invariant: true,
        };
        let mut memory = |dtype, rows, columns, stride| {
            let mut memory = Memory::matrix(dtype, rows, columns, stride);
            memory.fill(|| if dtype == Dtype::E4m3 { random.next() & 0xF7 } else { random.ordinary(dtype) });
            memory
        };
        let (input, weight) = (memory(dtype, m, k, k + 3), memory(Dtype::E4m3, n, k, k + 7));
        let bias = bias_dtype.map(|dtype| Memory::new(dtype, &[n], &[1], n));
        let scales = |subject: &Subject, rows, format| {
            let layout = ScalesLayout::new(subject, [1, rows, k], format, matches!(subject, Subject::Activation));
            let layout = layout.unwrap();
            let mut memory = Memory::new(layout.dtype, &layout.shape[1..], &layout.stride[1..], layout.bytes / 4);
            let mut random = Random(rows as u64);
            let packed = format == ScaleFormat::Ue8m0Packed;
            memory.fill(|| if packed { 0x7F7E_807D } else { 0x3F80_0000 | random.next() >> 10 });
            memory
        };
        let subject = Subject::Weight { part_rows };
        let weight_scales = scales(&subject, n, formats[1]);
        let input_scales = (dtype == Dtype::E4m3).then(|| scales(&Subject::Activation, m, formats[0]));
        let output = Memory::matrix(output_dtype, m, n, n + 1);
        let mut case = LinearCase { spec, input, input_scales, weight, weight_scales, bias, output };
        if let Some(bias) = &mut case.bias {
            let dtype = bias.dtype;
            bias.fill(|| random.ordinary(dtype));
        }
        case
    }

    fn run(&mut self, workspace_bytes: usize, body: impl FnOnce(&LinearRun)) -> Vec<u32> {
        let mut output = self.output.clone();
        let mut workspace = Memory::new(Dtype::F32, &[1], &[1], workspace_bytes / 4 + 64);
        let offset = workspace.address().align_offset(256);
        let (x, weight, weight_scales) =
            (self.input.view("x"), self.weight.view("weight"), self.weight_scales.view("weight_scales"));
        let x_scales = self.input_scales.as_mut().map(|scales| scales.view("x_scales"));
        let (bias, y) = (self.bias.as_mut().map(|bias| bias.view("bias")), output.view("y"));
        let operands = LinearOperands {
            input: &x,
            input_scales: x_scales.as_ref(),
            weight: &weight,
            weight_scales: &weight_scales,
            bias: bias.as_ref(),
            output: &y,
            workspace: workspace.address().wrapping_add(offset),
            workspace_bytes,
        };
        body(&LinearRun::new(&self.spec, operands, |_| workspace_bytes).unwrap());
        values(&output)
    }

    fn compare(&mut self) {
        let want = self.run(0, reference::linear);
        for engine in engines() {
            let bytes = linear::workspace(&engine, &self.spec, self.input.shape[0] as usize);
            let got = self.run(bytes, |run| linear::linear(&engine, run).unwrap());
            let LinearSpec { n, k, .. } = self.spec;
            assert!(got == want, "{:?} M = {} N = {n} K = {k}", engine.isa, self.input.shape[0]);
        }
    }
}

#[test]
fn linear_equals_the_oracle() {
    let mut random = Random(4);
    let shapes: &[(usize, usize, usize, &[i64])] = if cfg!(miri) {
        &[(1, 1, 130, &[]), (5, 2, 3, &[])]
    } else {
        &[
            (1, 130, 300, &[]),
            (2, 33, 128, &[]),
            (3, 5, 1, &[]),
            (4, 64, 640, &[]),
            (5, 37, 129, &[]),
            (7, 133, 512, &[100, 0, 33]),
            (67, 40, 1026, &[]),
            (130, 3, 64, &[1, 1, 1]),
            (3, 4, 0, &[]),
            (0, 4, 8, &[]),
            (4, 0, 8, &[]),
        ]
    };
    for &(m, n, k, parts) in shapes {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::E4m3] {
            LinearCase::new(m, n, k, dtype, parts, &mut random).compare();
        }
    }
}
