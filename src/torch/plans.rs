//! Plans of linears by what they are for. Looking one up takes no lock; a plan is made once and never destroyed.

use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::context::Context;
use crate::error::{Kind, Result};
use crate::linear::LinearSpec;
use crate::plan::LinearPlan;
use crate::recipe::{Recipe, ScaleFormat};
use crate::tensor::{Dtype, Tensor};

use super::settings::Quantization;

/// Everything that a plan depends on, but the rows of x.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub device: i32,
    pub n: usize,
    pub k: usize,
    /// Of x and y.
    pub dtype: Dtype,
    pub bias_dtype: Option<Dtype>,
    /// Whether the scales of the weight are packed exponents.
    pub packed: bool,
    pub weight_stride: usize,
    pub output_stride: usize,
    pub recipe: i64,
    pub scale_format: i64,
    /// The bits of the floor.
    pub floor: Option<u32>,
    pub batch_invariant: bool,
    pub backends: u32,
    pub part_rows: Vec<i64>,
}

impl Wanted {
    fn spec(&self, max_m: usize) -> Result<LinearSpec> {
        let floor = self.floor.map(f32::from_bits);
        let Quantization { formula, format } = Quantization::new(self.recipe, self.scale_format, floor, Recipe::Vllm)?;
        Ok(LinearSpec {
            max_m,
            n: self.n,
            k: self.k,
            input_dtype: self.dtype,
            output_dtype: self.dtype,
            bias_dtype: self.bias_dtype,
            formula,
            activation_format: format,
            activation_column_major: true,
            weight_format: if self.packed { ScaleFormat::Ue8m0Packed } else { ScaleFormat::Fp32 },
            part_rows: self.part_rows.clone(),
            input_stride: self.k,
            weight_stride: self.weight_stride,
            output_stride: self.output_stride,
            batch_invariant: self.batch_invariant,
        })
    }

    fn bucket(&self) -> &'static AtomicPtr<Node> {
        let mut mixer = Mixer(0);
        self.hash(&mut mixer);
        &BUCKETS[(mixer.finish() >> 32) as usize % BUCKETS.len()]
    }
}

/// What belongs to a weight and is checked against it when a plan is made.
pub struct Weight<'a> {
    pub codes: &'a Tensor,
    pub scales: &'a Tensor,
    pub bias: Option<&'a Tensor>,
}

/// A plan and what it is for. A larger plan for the same takes its place; the one before stays for who still runs it.
struct Node {
    wanted: Wanted,
    plan: AtomicPtr<LinearPlan>,
    next: *mut Node,
}

static BUCKETS: [AtomicPtr<Node>; 256] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 256];

/// Held by who makes a plan.
static MAKING: Mutex<()> = Mutex::new(());

fn node(wanted: &Wanted) -> Option<&'static Node> {
    let mut next = wanted.bucket().load(Ordering::Acquire);
    // SAFETY: nodes are published whole, and never freed.
    while let Some(node) = unsafe { next.as_ref() } {
        if node.wanted == *wanted {
            return Some(node);
        }
        next = node.next;
    }
    None
}

fn planned(wanted: &Wanted) -> Option<&'static LinearPlan> {
    // SAFETY: plans are published whole, and never freed.
    node(wanted).map(|node| unsafe { &*node.plan.load(Ordering::Acquire) })
}

/// A plan for runs of `m` rows: one that is there, or a new one, which a captured stream does not allow.
#[inline]
pub fn find(
    context: &Arc<Context>,
    wanted: &Wanted,
    m: usize,
    weight: Weight,
    stream: *mut c_void,
) -> Result<&'static LinearPlan> {
    match planned(wanted) {
        Some(plan) if plan.spec().max_m >= m => Ok(plan),
        // Twice the rows cost no more to plan, and the next larger run finds it.
        _ => prepare(context, wanted, m.next_power_of_two(), weight, stream).map_err(|mut error| {
            if error.kind == Kind::NotPrepared {
                let most = planned(wanted).map_or(0, |plan| plan.spec().max_m);
                let Wanted { n, k, .. } = wanted;
                error.message = format!(
                    "M = {m} is not prepared (N = {n}, K = {k}, prepared up to M = {most}) and the stream is being \
                     captured: call fp8rt::linear_prepare with max_m of at least {m} before the capture"
                );
            }
            error
        }),
    }
}

/// Makes and prepares a plan for up to `max_m` rows, unless there is one.
#[cold]
pub fn prepare(
    context: &Arc<Context>,
    wanted: &Wanted,
    max_m: usize,
    weight: Weight,
    stream: *mut c_void,
) -> Result<&'static LinearPlan> {
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(plan) = planned(wanted).filter(|plan| plan.spec().max_m >= max_m) {
        return Ok(plan);
    }
    // First of all, so that nothing is asked of the device while a stream is captured.
    context.prepare(stream)?;
    let plan = LinearPlan::new(context.clone(), wanted.spec(max_m)?, wanted.backends)?;
    plan.prepare(weight.codes, weight.scales, weight.bias, stream)?;
    let plan = Box::into_raw(Box::new(plan));
    match node(wanted) {
        Some(node) => node.plan.store(plan, Ordering::Release),
        None => {
            let bucket = wanted.bucket();
            let next = bucket.load(Ordering::Relaxed);
            let node = Node { wanted: wanted.clone(), plan: AtomicPtr::new(plan), next };
            bucket.store(Box::into_raw(Box::new(node)), Ordering::Release);
        }
    }
    // SAFETY: just made, and never freed.
    Ok(unsafe { &*plan })
}

/// Mixes the words of a key by a multiplication each: the keys are this process's own.
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.chunks(8).for_each(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        });
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::HOST;

    fn wanted(n: usize) -> Wanted {
        Wanted {
            device: HOST,
            n,
            k: 0,
            dtype: Dtype::F32,
            bias_dtype: None,
            packed: false,
            weight_stride: 0,
            output_stride: n,
            recipe: 0,
            scale_format: 0,
            floor: None,
            batch_invariant: false,
            backends: 0,
            part_rows: Vec::new(),
        }
    }

    /// Tensors without elements, which need no memory.
    fn empty(dtype: Dtype, rows: i64) -> Tensor {
        let description = crate::tensor::Description {
            data: std::ptr::null_mut(),
            bytes: 0,
            dtype,
            device: HOST,
            rank: 2,
            shape: &[rows, 0, 0],
            stride: &[0, 1, 0],
        };
        Tensor::new("weight", &description).unwrap()
    }

    #[test]
    fn a_plan_is_found_again_and_grows() {
        let context = Arc::new(Context::new(HOST, 1).unwrap());
        let ask = |n: usize, m: usize| {
            let (codes, scales) = (empty(Dtype::E4m3, n as i64), empty(Dtype::F32, n.div_ceil(128) as i64));
            let weight = Weight { codes: &codes, scales: &scales, bias: None };
            find(&context, &wanted(n), m, weight, std::ptr::null_mut()).unwrap()
        };
        let first = ask(128, 5);
        assert_eq!(first.spec().max_m, 8);
        assert!(std::ptr::eq(first, ask(128, 8)) && std::ptr::eq(first, ask(128, 0)));
        let second = ask(128, 9);
        assert!(second.spec().max_m == 16 && std::ptr::eq(second, ask(128, 5)));
        // Far more keys than buckets, where that is not slow.
        for n in 1000..if cfg!(miri) { 1010 } else { 2000 } {
            assert_eq!(ask(n, 1).spec().n, n);
        }
        assert!(std::ptr::eq(second, ask(128, 5)));
    }

    #[test]
    fn keys_spread_over_the_buckets() {
        let mut used: Vec<_> = (0..256).map(|n| std::ptr::from_ref(wanted(128 * n).bucket())).collect();
        used.sort();
        used.dedup();
        assert!(used.len() > 120, "{} buckets", used.len());
    }
}
