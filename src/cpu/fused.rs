//! Producers of activations: a row at a time, a group of it at a time on the stack, written or quantized at once.

use std::marker::PhantomData;

use crate::blocks::{BLOCK, PACKED, groups};
use crate::error::Result;
use crate::formats::e8m0;
use crate::fused::{Fused, Producer, Quantized, RmsNorm, Target};
use crate::quantize::Health;
use crate::recipe::{Factor, ScaleFormat};
use crate::tensor::{Dtype, Tensor};

use super::Engine;
use super::isa::Kernel;
use super::lanes::{Instructions, LANES, add_lanes};
use super::segment::{Amax, Bf16, Divided, Element, F16, InRange, Multiplied, Scaling, encode, examine};

/// Elements that a task takes at least, so that taking it costs little beside doing it.
const TASK_ELEMENTS: usize = 32 * 1024;

/// Runs a checked production.
pub fn fused(engine: &Engine, request: &Fused) -> Result<()> {
    match request.dtype {
        Dtype::Bf16 => rows::<Bf16>(engine, request)?,
        Dtype::F16 => rows::<F16>(engine, request)?,
        _ => rows::<f32>(engine, request)?,
    }
    if let Target::Quantized(quantized) = &request.target {
        // SAFETY: the tasks are done, and the caller gave the scales to this call alone.
        unsafe { quantized.scales.zero_padding() };
    }
    Ok(())
}

fn rows<T: Element>(engine: &Engine, request: &Fused) -> Result<()> {
    let (rows, columns) = (request.rows(), request.columns());
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let run = (TASK_ELEMENTS / columns).max(1);
    engine.threads.for_each(rows.div_ceil(run), |_, task| {
        let range = task * run..((task + 1) * run).min(rows);
        let health = engine.isa.run(Rows::<T> { request, range, element: PhantomData });
        if let Target::Quantized(Quantized { health: Some(counters), .. }) = request.target {
            // SAFETY: a host context has its counters in host memory.
            unsafe { health.add_to(counters) };
        }
    })
}

/// Some neighboring rows.
struct Rows<'a, T> {
    request: &'a Fused<'a>,
    range: std::ops::Range<usize>,
    element: PhantomData<T>,
}

impl<T: Element> Kernel for Rows<'_, T> {
    type Output = Health;

    #[inline(always)]
    fn run<I: Instructions>(self) -> Health {
        let mut sink = Sink { target: &self.request.target, health: Health::default(), word: 0 };
        for row in self.range {
            match &self.request.producer {
                Producer::SiluAndMul { gate_up } => silu_row::<T>(gate_up, row, &mut sink),
                Producer::RmsNorm(norm) => norm_row::<T>(norm, row, &mut sink),
            }
        }
        sink.health
    }
}

/// First column and length of each group of a row.
#[inline(always)]
fn runs(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..columns).step_by(BLOCK).map(move |first| (first, (columns - first).min(BLOCK)))
}

/// g / (1 + exp(-g)), in a form that neither overflows nor loses small results.
#[inline(always)]
fn silu(g: f32) -> f32 {
    let power = (-g.abs()).exp();
    (if g < 0.0 { g * power } else { g }) / (1.0 + power)
}

#[inline(always)]
fn silu_row<T: Element>(gate_up: &Tensor, row: usize, sink: &mut Sink) {
    let columns = gate_up.columns() / 2;
    let mut values = [T::from_f32(0.0); BLOCK];
    for (first, length) in runs(columns) {
        // SAFETY: within the matrix, whose dtype chose T; the caller does not write to it during the call.
        let (gate, up) =
            unsafe { (gate_up.run::<T>(0, row, first, length), gate_up.run::<T>(0, row, columns + first, length)) };
        for ((value, gate), up) in values.iter_mut().zip(gate).zip(up) {
            *value = T::from_f32(silu(gate.to_f32()) * up.to_f32());
        }
        sink.take(row, first, &values[..length]);
    }
}

/// The sum of squares of a run; the order depends on its length alone.
#[inline(always)]
fn sum_of_squares<T: Element>(run: &[T]) -> f32 {
    let mut lanes = [0f32; LANES];
    for vector in run.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(vector) {
            *lane += x.to_f32() * x.to_f32();
        }
    }
    add_lanes(lanes)
}

#[inline(always)]
fn norm_row<T: Element>(norm: &RmsNorm, row: usize, sink: &mut Sink) {
    let columns = norm.input.columns();
    let mut squares = 0f32;
    for (first, length) in runs(columns) {
        // SAFETY: within the matrices, whose dtype chose T; no other task has this row of the residual.
        let input = unsafe { norm.input.run::<T>(0, row, first, length) };
        let Some(residual) = norm.residual else {
            squares += sum_of_squares(input);
            continue;
        };
        // SAFETY: as above.
        let residual = unsafe { residual.run_mut::<T>(0, row, first, length) };
        for (z, x) in residual.iter_mut().zip(input) {
            *z = T::from_f32(x.to_f32() + z.to_f32());
        }
        squares += sum_of_squares(residual);
    }
    let inverse = 1.0 / (squares / columns as f32 + norm.epsilon).sqrt();
    let mut values = [T::from_f32(0.0); BLOCK];
    for (first, length) in runs(columns) {
        // SAFETY: as above; nobody writes to them any more.
        let (row_of_z, weight) = unsafe {
            let z = norm.residual.unwrap_or(norm.input);
            (z.run::<T>(0, row, first, length), norm.weight.run::<T>(0, 0, first, length))
        };
        for ((value, z), weight) in values.iter_mut().zip(row_of_z).zip(weight) {
            *value = T::from_f32(z.to_f32() * inverse * weight.to_f32());
        }
        sink.take(row, first, &values[..length]);
    }
}

/// Takes the groups of a row, in order.
struct Sink<'a> {
    target: &'a Target<'a>,
    health: Health,
    /// Exponents of the groups since the last whole word.
    word: u32,
}

impl Sink<'_> {
    #[inline(always)]
    fn take<T: Element>(&mut self, row: usize, first: usize, values: &[T]) {
        match self.target {
            // SAFETY: within the matrix, whose dtype is the input's; no other task has this row.
            Target::Values(output) => unsafe {
                output.run_mut::<T>(0, row, first, values.len()).copy_from_slice(values);
            },
            Target::Quantized(quantized) => self.quantize(quantized, row, first, values),
        }
    }

    #[inline(always)]
    fn quantize<T: Element>(&mut self, quantized: &Quantized, row: usize, first: usize, values: &[T]) {
        let mut amax = Amax::<T>::new();
        amax.add(values);
        let finite = amax.get().is_finite();
        if !finite {
            amax = Amax::new();
            amax.add_finite(values);
        }
        let (scale, factor) = quantized.formula.scale(amax.get());
        self.store_scale(quantized, row, first / BLOCK, scale);
        match (factor, finite) {
            (Factor::Divide(scale), true) => self.codes(quantized, row, first, values, InRange(Divided(scale))),
            (Factor::Divide(scale), false) => self.codes(quantized, row, first, values, Divided(scale)),
            (Factor::Multiply(inverse), true) => {
                self.codes(quantized, row, first, values, InRange(Multiplied(inverse)))
            }
            (Factor::Multiply(inverse), false) => self.codes(quantized, row, first, values, Multiplied(inverse)),
        }
    }

    #[inline(always)]
    fn codes<T: Element>(
        &mut self,
        quantized: &Quantized,
        row: usize,
        first: usize,
        values: &[T],
        scaling: impl Scaling,
    ) {
        // SAFETY: within the matrix; no other task has this row.
        let codes: &mut [u8] = unsafe { quantized.codes.run_mut(0, row, first, values.len()) };
        encode(values, scaling, codes);
        if quantized.health.is_some() {
            let counts = examine(values, scaling, codes);
            self.health.non_finite += counts.non_finite;
            self.health.saturated += counts.saturated;
            self.health.became_zero += counts.became_zero;
            self.health.became_subnormal += counts.became_subnormal;
        }
    }

    /// Writes a scale; a packed one with the last of its word.
    #[inline(always)]
    fn store_scale(&mut self, quantized: &Quantized, row: usize, group: usize, scale: f32) {
        let tensor = quantized.scales.tensor;
        if quantized.scales.format != ScaleFormat::Ue8m0Packed {
            // SAFETY: within the scales, which have a row for each row; no other task has it.
            unsafe { tensor.at::<f32>(0, row, group).write(scale) };
            return;
        }
        self.word |= (e8m0::from_pow2(scale) as u32) << (8 * (group % PACKED));
        if group % PACKED == PACKED - 1 || group + 1 == groups(quantized.codes.columns()) {
            // SAFETY: as above.
            unsafe { tensor.at::<u32>(0, row, group / PACKED).write(self.word) };
            self.word = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::cpu::{Isa, Threads, quantize};
    use crate::formats::half;
    use crate::quantize::{HealthCounters, HealthPointer, Operands, Quantize, Rule, Subject};
    use crate::recipe::{Formula, Recipe};
    use crate::tensor::{Description, FLOATS};

    const COLUMNS: [usize; 4] = [1, 129, 333, 768];
    const ROWS: usize = 5;

    /// A matrix with room behind each row.
    #[derive(Clone, PartialEq, Debug)]
    struct Memory {
        words: Vec<u32>,
        dtype: Dtype,
        shape: [i64; 3],
        stride: [i64; 3],
        rank: u32,
    }

    impl Memory {
        fn matrix(dtype: Dtype, rows: usize, columns: usize) -> Memory {
            let stride = columns + 3;
            let words = vec![0; (rows * stride * dtype.bytes()).div_ceil(4)];
            Memory { words, dtype, shape: [rows as i64, columns as i64, 0], stride: [stride as i64, 1, 0], rank: 2 }
        }

        fn vector(dtype: Dtype, columns: usize) -> Memory {
            let words = vec![0; (columns * dtype.bytes()).div_ceil(4)];
            Memory { words, dtype, shape: [columns as i64, 0, 0], stride: [1, 0, 0], rank: 1 }
        }

        /// Column-major with padding, as every format takes it.
        fn scales(format: ScaleFormat, columns: usize) -> Memory {
            let packed = format == ScaleFormat::Ue8m0Packed;
            let count = if packed { groups(columns).div_ceil(PACKED) } else { groups(columns) };
            let dtype = if packed { Dtype::Int32 } else { Dtype::F32 };
            let words = vec![0xA5A5_A5A5; 8 * count];
            Memory { words, dtype, shape: [ROWS as i64, count as i64, 0], stride: [1, 8, 0], rank: 2 }
        }

        fn view(&mut self, name: &'static str) -> Tensor {
            let Memory { dtype, rank, .. } = *self;
            let (data, bytes) = (self.words.as_mut_ptr().cast(), self.words.len() as u64 * 4);
            let (shape, stride) = (&self.shape, &self.stride);
            Tensor::new(name, &Description { data, bytes, dtype, device: -1, rank, shape, stride }).unwrap()
        }

        fn fill(mut self, seed: u32) -> Memory {
            let (dtype, mut state) = (self.dtype, seed);
            let mut number = || {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                (state >> 8) as f32 / (1 << 21) as f32 - 4.0
            };
            for word in &mut self.words {
                *word = match dtype {
                    Dtype::F32 => number().to_bits(),
                    Dtype::Bf16 => half::bf16_from_f32(number()) as u32 | (half::bf16_from_f32(number()) as u32) << 16,
                    _ => half::f16_from_f32(number()) as u32 | (half::f16_from_f32(number()) as u32) << 16,
                };
            }
            self
        }

        fn value(&self, row: usize, column: usize) -> f64 {
            let index = row * self.stride[0] as usize + column;
            let pair = |index: usize| (self.words[index / 2] >> (16 * (index % 2))) as u16;
            (match self.dtype {
                Dtype::F32 => f32::from_bits(self.words[index]),
                Dtype::Bf16 => half::bf16_to_f32(pair(index)),
                _ => half::f16_to_f32(pair(index)),
            }) as f64
        }

        /// Distance of neighboring numbers about `x`.
        fn ulp(&self, x: f64) -> f64 {
            let (digits, least) = match self.dtype {
                Dtype::F32 => (23, -126),
                Dtype::Bf16 => (7, -126),
                _ => (10, -14),
            };
            2f64.powi((x.abs().log2().floor() as i32).max(least) - digits)
        }

        /// A float32 result carries the rounding of each step; a narrower one that of the last alone.
        fn assert_close(&self, row: usize, column: usize, exact: f64) {
            let most = if self.dtype == Dtype::F32 { 8.0 } else { 1.0 };
            let (got, ulp) = (self.value(row, column), self.ulp(exact));
            assert!((got - exact).abs() <= most * ulp, "{} {row} {column}: {got:e} {exact:e}", self.dtype);
        }
    }

    fn engines() -> impl Iterator<Item = Engine> {
        let make = |isa| Engine { isa, threads: Threads::new(2).unwrap() };
        Isa::available().into_iter().map(make)
    }

    /// What a quantization wrote.
    #[derive(PartialEq, Debug)]
    struct Written {
        codes: Memory,
        scales: Memory,
        health: [u64; 4],
    }

    /// Calls `run` with outputs.
    fn written(
        columns: usize,
        format: ScaleFormat,
        run: impl FnOnce(&Tensor, &Tensor, Formula, HealthPointer),
    ) -> Written {
        let (mut codes, mut scales) = (Memory::matrix(Dtype::E4m3, ROWS, columns), Memory::scales(format, columns));
        let health: HealthCounters = std::array::from_fn(|_| AtomicU64::new(0));
        let formula = Formula::new(Recipe::Vllm, format, None);
        run(&codes.view("codes"), &scales.view("scales"), formula, HealthPointer((&health).into()));
        Written { codes, scales, health: health.map(|counter| counter.load(Ordering::Relaxed)) }
    }

    /// Quantizing in the same pass gives what quantizing the written values gives.
    fn assert_same(engine: &Engine, values: &mut Memory, mut produce: impl FnMut(Target)) {
        let columns = values.shape[1] as usize;
        let source = values.view("activation");
        for format in [ScaleFormat::Fp32, ScaleFormat::Pow2, ScaleFormat::Ue8m0Packed] {
            let apart = written(columns, format, |codes, scales, formula, health| {
                let operands = Operands { source: &source, codes: Some(codes), scales };
                let rule = Rule::Compute(formula);
                let request = Quantize::new(Subject::Activation, operands, format, rule, Some(health)).unwrap();
                quantize(engine, &request).unwrap();
            });
            let at_once = written(columns, format, |codes, scales, formula, health| {
                produce(Target::Quantized(Quantized::new(codes, scales, format, formula, Some(health)).unwrap()));
            });
            assert_eq!(apart, at_once, "{format:?} of {columns} columns");
        }
    }

    fn each_case(test: impl Fn(&Engine, Dtype, usize)) {
        if cfg!(miri) {
            // An interpreter takes seconds for a row.
            let engine = Engine { isa: Isa::Baseline, threads: Threads::new(1).unwrap() };
            return test(&engine, Dtype::Bf16, 5);
        }
        for engine in engines() {
            for &dtype in FLOATS {
                for columns in COLUMNS {
                    test(&engine, dtype, columns);
                }
            }
        }
    }

    #[test]
    fn silu_and_mul_is_near_the_exact_result_and_the_same_in_one_pass() {
        each_case(|engine, dtype, columns| {
            let mut gate_up = Memory::matrix(dtype, ROWS, 2 * columns).fill(1);
            let mut output = Memory::matrix(dtype, ROWS, columns);
            let source = gate_up.view("gate_up");
            let produce = |target: Target| fused(engine, &Fused::silu_and_mul(&source, target).unwrap()).unwrap();
            produce(Target::Values(&output.view("output")));
            for (row, column) in (0..ROWS).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                let (gate, up) = (gate_up.value(row, column), gate_up.value(row, columns + column));
                output.assert_close(row, column, gate / (1.0 + (-gate).exp()) * up);
            }
            assert_same(engine, &mut output, produce);
        });
    }

    #[test]
    fn silu_keeps_small_results_and_infinities() {
        for g in [-100f32, -89.0, -20.0, -1e-30, 1e-30, 20.0, 1e30] {
            let exact = g as f64 / (1.0 + (-g as f64).exp());
            let granularity = f32::from_bits(1) as f64 * g.abs().max(1.0) as f64;
            assert!((silu(g) as f64 - exact).abs() <= exact.abs() * 1e-6 + granularity, "{g}");
        }
        assert_eq!(silu(f32::INFINITY), f32::INFINITY);
        assert!(silu(f32::NAN).is_nan());
        assert_eq!(silu(-0.0).to_bits(), (-0f32).to_bits());
    }

    #[test]
    fn rms_norm_is_near_the_exact_result_and_the_same_in_one_pass() {
        each_case(|engine, dtype, columns| {
            for with_residual in [false, true] {
                norm_case(engine, dtype, columns, with_residual);
            }
        });
    }

    fn norm_case(engine: &Engine, dtype: Dtype, columns: usize, with_residual: bool) {
        let mut input = Memory::matrix(dtype, ROWS, columns).fill(2);
        let mut weight = Memory::vector(dtype, columns).fill(3);
        let mut output = Memory::matrix(dtype, ROWS, columns);
        let before = Memory::matrix(dtype, ROWS, columns).fill(4);
        let mut after = before.clone();
        let (x, w) = (input.view("input"), weight.view("weight"));
        let run = |residual: &mut Memory, target: Target| {
            let residual = residual.view("residual");
            let residual = with_residual.then_some(&residual);
            let norm = RmsNorm { input: &x, residual, weight: &w, epsilon: 1e-5 };
            fused(engine, &Fused::rms_norm(norm, target).unwrap()).unwrap();
        };
        run(&mut after, Target::Values(&output.view("output")));
        let z = if with_residual { &after } else { &input };
        for row in 0..ROWS {
            let squares: f64 = (0..columns).map(|column| z.value(row, column).powi(2)).sum();
            let inverse = (squares / columns as f64 + 1e-5f32 as f64).sqrt().recip();
            for column in 0..columns {
                output.assert_close(row, column, z.value(row, column) * inverse * weight.value(0, column));
                let sum = input.value(row, column) + before.value(row, column);
                assert!(!with_residual || (after.value(row, column) - sum).abs() <= after.ulp(sum) / 2.0);
            }
        }
        assert_same(engine, &mut output, |target: Target| {
            let mut again = before.clone();
            run(&mut again, target);
            assert_eq!(again, after);
        });
    }

    #[test]
    fn outputs_that_overlap_and_wrong_shapes_are_refused() {
        let mut gate_up = Memory::matrix(Dtype::Bf16, ROWS, 64);
        let mut output = Memory::matrix(Dtype::Bf16, ROWS, 32);
        let (source, target) = (gate_up.view("gate_up"), output.view("output"));
        assert!(Fused::silu_and_mul(&source, Target::Values(&target)).is_ok());
        assert!(Fused::silu_and_mul(&target, Target::Values(&target)).is_err());
        assert!(Fused::silu_and_mul(&source, Target::Values(&source)).is_err());
        let mut weight = Memory::vector(Dtype::Bf16, 32);
        let weight = weight.view("weight");
        let norm = RmsNorm { input: &target, residual: None, weight: &weight, epsilon: 1e-5 };
        assert!(Fused::rms_norm(norm, Target::Values(&target)).is_err());
        let mut other = Memory::matrix(Dtype::Bf16, ROWS, 32);
        let view = other.view("output");
        let other = Target::Values(&view);
        assert!(Fused::rms_norm(norm, other).is_ok());
        assert!(Fused::rms_norm(RmsNorm { residual: Some(&target), ..norm }, other).is_err());
        assert!(Fused::rms_norm(RmsNorm { epsilon: f32::NAN, ..norm }, other).is_err());
    }
}
