//! Producers of activations, quantized in the same pass.

use std::ffi::CStr;

use crate::error::Result;
use crate::fused::{Fused, Quantized, RmsNorm, Target};
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use crate::torch::arguments::{Arguments, expect_device};
use crate::torch::kernel::{Op, Returned};
use crate::torch::settings::{Quantization, health};

use super::quantize::context;

/// Where the quantized values go, and how: codes and scales stand from `outputs` on, the settings from `settings` on
/// and the counters after them.
struct Outputs {
    codes: Tensor,
    scales: Tensor,
    settings: usize,
}

impl Outputs {
    fn read(arguments: &Arguments, outputs: usize, settings: usize) -> Result<Outputs> {
        let (codes, scales) = (arguments.tensor(outputs, "codes")?, arguments.tensor(outputs + 1, "scales")?);
        Ok(Outputs { codes, scales, settings })
    }

    fn target(&self, arguments: &Arguments) -> Result<Target<'_>> {
        let Quantization { formula, format } = Quantization::read(arguments, self.settings, Recipe::Vllm)?;
        let health = health(arguments, self.settings + 3, self.codes.device)?;
        Ok(Target::Quantized(Quantized::new(&self.codes, &self.scales, format, formula, health)?))
    }
}

/// silu(gate) * up.
pub struct SiluAndMulQuantize;

impl Op for SiluAndMulQuantize {
    const NAME: &'static CStr = c"silu_and_mul_quantize";
    const SCHEMA: &'static CStr = c"silu_and_mul_quantize(Tensor gate_up, Tensor(a!) codes, Tensor(b!) scales, \
        int recipe=0, int scale_format=0, float? floor=None, Tensor(c!)? health=None) -> ()";

    fn run(arguments: &Arguments) -> Result<Returned> {
        let gate_up = arguments.tensor(0, "gate_up")?;
        let outputs = Outputs::read(arguments, 1, 3)?;
        expect_device(gate_up.device, [&outputs.codes, &outputs.scales])?;
        let request = Fused::silu_and_mul(&gate_up, outputs.target(arguments)?)?;
        let (context, stream) = context(arguments, gate_up.device)?;
        context.fused(&request, stream)?;
        Ok(Returned::Nothing)
    }
}

/// RMS norm, of a sum where there is a residual.
pub struct RmsNormQuantize;

impl Op for RmsNormQuantize {
    const NAME: &'static CStr = c"rms_norm_quantize";
    const SCHEMA: &'static CStr = c"rms_norm_quantize(Tensor input, Tensor weight, float epsilon, Tensor(a!) codes, \
        Tensor(b!) scales, Tensor(c!)? residual=None, int recipe=0, int scale_format=0, float? floor=None, \
        Tensor(d!)? health=None) -> ()";

    fn run(arguments: &Arguments) -> Result<Returned> {
        let (input, weight) = (arguments.tensor(0, "input")?, arguments.tensor(1, "weight")?);
        let residual = arguments.optional_tensor(5, "residual")?;
        let outputs = Outputs::read(arguments, 3, 6)?;
        expect_device(input.device, [&weight, &outputs.codes, &outputs.scales].into_iter().chain(&residual))?;
        let epsilon = arguments.float(2) as f32;
        let norm = RmsNorm { input: &input, residual: residual.as_ref(), weight: &weight, epsilon };
        let request = Fused::rms_norm(norm, outputs.target(arguments)?)?;
        let (context, stream) = context(arguments, input.device)?;
        context.fused(&request, stream)?;
        Ok(Returned::Nothing)
    }
}
