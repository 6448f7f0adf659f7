//! Weights and activations to codes and scales.

use std::ffi::{CStr, c_void};

use crate::blocks::groups;
use crate::context::Context;
use crate::error::{Result, ensure, fail};
use crate::quantize::{HealthPointer, Operands, Quantize, Rule, Subject};
use crate::recipe::{Recipe, ScaleFormat};
use crate::refit::{Entries, Entry, Manner, name_entry};
use crate::tensor::Tensor;
use crate::torch::arguments::{Arguments, expect_device};
use crate::torch::kernel::{Op, Returned};
use crate::torch::settings::{Quantization, health};
use crate::torch::traced;
use crate::torch::{owned::Owned, place};

/// Checks and runs one quantization.
fn quantize(
    arguments: &Arguments,
    subject: Subject,
    [source, codes, scales]: [&Tensor; 3],
    quantization: &Quantization,
    health: Option<HealthPointer>,
) -> Result<()> {
    expect_device(source.device, [codes, scales])?;
    let operands = Operands { source, codes: Some(codes), scales };
    let rule = Rule::Compute(quantization.formula);
    let request = Quantize::new(subject, operands, quantization.format, rule, health)?;
    let (context, stream) = context(arguments, source.device)?;
    context.quantize(&request, stream)
}

/// The context of a device, and torch's stream there.
pub fn context(arguments: &Arguments, device: i32) -> Result<(&'static std::sync::Arc<Context>, *mut c_void)> {
    let stream = place::stream(arguments.shim(), device)?;
    Ok((place::context(arguments.shim(), device, stream)?, stream))
}

/// One weight, into memory that is there.
pub struct QuantizeWeight;

impl Op for QuantizeWeight {
    const NAME: &'static CStr = c"quantize_weight";
    const SCHEMA: &'static CStr = c"quantize_weight(Tensor weight, Tensor(a!) codes, Tensor(b!) scales, int recipe=0, \
        int scale_format=0, float? floor=None, int[]? part_rows=None, Tensor(c!)? health=None) -> ()";

    fn run(arguments: &Arguments) -> Result<Returned> {
        let weight = arguments.tensor(0, "weight")?;
        let (codes, scales) = (arguments.tensor(1, "codes")?, arguments.tensor(2, "scales")?);
        let quantization = Quantization::read(arguments, 3, Recipe::NemoRl)?;
        let part_rows = arguments.ints(6)?;
        let health = health(arguments, 7, weight.device)?;
        let subject = Subject::Weight { part_rows: &part_rows };
        quantize(arguments, subject, [&weight, &codes, &scales], &quantization, health)?;
        Ok(Returned::Nothing)
    }
}

/// One activation, into memory that is there.
pub struct QuantizeActivationOut;

impl Op for QuantizeActivationOut {
    const NAME: &'static CStr = c"quantize_activation_out";
    const SCHEMA: &'static CStr = c"quantize_activation_out(Tensor activation, Tensor(a!) codes, Tensor(b!) scales, \
        int recipe=0, int scale_format=0, float? floor=None, Tensor(c!)? health=None) -> ()";

    fn run(arguments: &Arguments) -> Result<Returned> {
        let activation = arguments.tensor(0, "activation")?;
        let (codes, scales) = (arguments.tensor(1, "codes")?, arguments.tensor(2, "scales")?);
        let quantization = Quantization::read(arguments, 3, Recipe::Vllm)?;
        let health = health(arguments, 6, activation.device)?;
        quantize(arguments, Subject::Activation, [&activation, &codes, &scales], &quantization, health)?;
        Ok(Returned::Nothing)
    }
}

/// One activation, into new codes and row-major scales.
pub struct QuantizeActivation;

impl Op for QuantizeActivation {
    const NAME: &'static CStr = c"quantize_activation";
    const SCHEMA: &'static CStr = c"quantize_activation(Tensor activation, int recipe=0, int scale_format=0, \
        float? floor=None) -> (Tensor, Tensor)";

    fn run(arguments: &Arguments) -> Result<Returned> {
        let activation = arguments.tensor(0, "activation")?;
        let quantization = Quantization::read(arguments, 1, Recipe::Vllm)?;
        expect_floats(quantization.format)?;
        ensure!(activation.rank == 2, Shape, "activation has {} dimensions, must have 2", activation.rank);
        let (m, k) = (activation.rows() as i64, activation.columns());
        let (shim, device) = (arguments.shim(), activation.device);
        let (columns, count) = (k as i64, groups(k) as i64);
        let codes = Owned::empty(shim, [m, columns], shim.dtypes.e4m3, device)?;
        let scales = Owned::empty(shim, [m, count], shim.dtypes.f32, device)?;
        let views = (codes.view("codes")?, scales.view("scales")?);
        quantize(arguments, Subject::Activation, [&activation, &views.0, &views.1], &quantization, None)?;
        Ok(Returned::Two(codes.release(), scales.release()))
    }

    fn fake(arguments: &Arguments) -> Result<Returned> {
        expect_floats(Quantization::read(arguments, 1, Recipe::Vllm)?.format)?;
        let (codes, scales) = traced::codes_and_scales(arguments.shim(), arguments.handle(0))?;
        Ok(Returned::Two(codes.release(), scales.release()))
    }
}

fn expect_floats(format: ScaleFormat) -> Result<()> {
    match format {
        ScaleFormat::Ue8m0Packed => {
            fail!(InvalidArgument, "scale_format is 2: packed exponents are written by quantize_activation_out")
        }
        _ => Ok(()),
    }
}

/// Many weights, one launch for each dtype.
pub struct QuantizeWeights;

impl Op for QuantizeWeights {
    const NAME: &'static CStr = c"quantize_weights";
    const SCHEMA: &'static CStr = c"quantize_weights(Tensor[] weights, Tensor(a!)[] codes, Tensor(b!)[] scales, \
        int recipe=0, int scale_format=0, float? floor=None, int[]? part_rows=None, int[]? part_counts=None, \
        Tensor(c!)? health=None) -> ()";

    fn run(arguments: &Arguments) -> Result<Returned> {
        let weights = arguments.tensors(0, "weight")?;
        let (codes, scales) = (arguments.tensors(1, "codes")?, arguments.tensors(2, "scales")?);
        let count = weights.len();
        for (name, given) in [("codes", codes.len()), ("scales", scales.len())] {
            ensure!(given == count, Shape, "{name} has {given} tensors, weights has {count}");
        }
        let Some(first) = weights.first() else { return Ok(Returned::Nothing) };
        let device = first.device;
        for (index, tensors) in weights.iter().zip(&codes).zip(&scales).enumerate() {
            let ((weight, codes), scales) = tensors;
            expect_device(device, [weight, codes, scales]).map_err(name_entry("entries", index))?;
        }
        let Quantization { formula, format } = Quantization::read(arguments, 3, Recipe::NemoRl)?;
        let manner = Manner { formula, format, health: health(arguments, 8, device)? };
        let (part_rows, part_counts) = (arguments.ints(6)?, arguments.ints(7)?);
        let parts = parts(count, &part_rows, &part_counts)?;
        let given = Given { weights: &weights, codes: &codes, scales: &scales, parts: &parts };
        given.check(manner)?;
        let (context, stream) = context(arguments, device)?;
        context.quantize_many(&given, manner, stream)?;
        Ok(Returned::Nothing)
    }
}

/// The rows of each weight's parts: `counts` says how many of `rows` are the next weight's.
fn parts<'a>(weights: usize, mut rows: &'a [i64], counts: &[i64]) -> Result<Vec<&'a [i64]>> {
    if counts.is_empty() {
        ensure!(rows.is_empty(), Shape, "part_rows has {} numbers, part_counts has none", rows.len());
        return Ok(vec![&[]; weights]);
    }
    let given = counts.len();
    ensure!(given == weights, Shape, "part_counts has {given} numbers, weights has {weights}");
    let mut parts = Vec::with_capacity(weights);
    for (index, &count) in counts.iter().enumerate() {
        let left = rows.len();
        let Some((own, rest)) = usize::try_from(count).ok().and_then(|count| rows.split_at_checked(count)) else {
            fail!(Shape, "part_counts[{index}] is {count}, part_rows has {left} numbers left")
        };
        parts.push(own);
        rows = rest;
    }
    ensure!(rows.is_empty(), Shape, "part_rows has {} numbers more than part_counts adds up to", rows.len());
    Ok(parts)
}

/// The lists of a call.
struct Given<'a> {
    weights: &'a [Tensor],
    codes: &'a [Tensor],
    scales: &'a [Tensor],
    parts: &'a [&'a [i64]],
}

impl Entries for Given<'_> {
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Entry) -> Result<()>) -> Result<()> {
        (0..self.weights.len()).try_for_each(|index| {
            let (weight, codes, scales) = (&self.weights[index], &self.codes[index], &self.scales[index]);
            let subject = Subject::Weight { part_rows: self.parts[index] };
            visitor(index, &Entry { weight, codes, scales, subject })
        })
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn parts_are_dealt_out_in_order() {
        assert_eq!(parts(2, &[], &[]).unwrap(), [&[0i64; 0][..]; 2]);
        assert_eq!(parts(3, &[5, 6, 7], &[2, 0, 1]).unwrap(), [&[5, 6][..], &[], &[7]]);
        for (rows, counts, needle) in [
            (&[5][..], &[][..], "part_rows has 1 numbers"),
            (&[5], &[1], "part_counts has 1 numbers, weights has 2"),
            (&[5], &[1, 1], "part_counts[1] is 1"),
            (&[5], &[-1, 1], "part_counts[0] is -1"),
            (&[5, 6], &[1, 0], "1 numbers more"),
        ] {
            let message = parts(2, rows, counts).unwrap_err().message;
            assert!(message.contains(needle), "{message}");
        }
    }
}
