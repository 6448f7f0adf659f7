"""A linear of vLLM whose weight is codes and scales of fp8rt."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod
from vllm.model_executor.parameter import BlockQuantScaleParameter, ModelWeightParameter

from fp8rt_vllm.library import Decision
from fp8rt_vllm.loading import Grid, quantizing_loader

if TYPE_CHECKING:
    from fp8rt_vllm.config import Fp8rtConfig

BLOCK = 128


@register_weight_loader_v2_supported_method
class Fp8rtLinearMethod(Fp8LinearMethod):
    """x bf16 or fp16 in, the same out: quantizing x is the library's, so no pass of vLLM finds one to fuse.

    vLLM's class is a base for the code that asks for it; nothing of its own runs.
    """

    def __init__(self, quant_config: Fp8rtConfig, prefix: str, decision: Decision) -> None:  # noqa: super's chooses kernels
        self.quant_config, self.prefix, self.decision = quant_config, prefix, decision
        self.weight_block_size = quant_config.weight_block_size
        self.block_quant, self.act_q_static = True, False
        self.use_marlin = self.use_deep_gemm = self.is_scale_e8m0 = False
        self.marlin_input_dtype = None
        self.out_dtype = torch.get_default_dtype()
        config = get_current_vllm_config()
        self.input_dtype = config.model_config.dtype
        self.max_rows = config.scheduler_config.max_num_batched_tokens
        self.backends = quant_config.policy.info["backends"]

    def create_weights(self, layer: torch.nn.Module, input_size_per_partition: int, output_partition_sizes: list[int],
                       input_size: int, output_size: int, params_dtype: torch.dtype, **extra_weight_attrs: Any) -> None:
        grid = Grid(output_partition_sizes, input_size_per_partition)
        layer.logical_widths = output_partition_sizes
        layer.input_size_per_partition = input_size_per_partition
        layer.output_size_per_partition = grid.rows
        layer.orig_dtype = params_dtype
        layer.weight_block_size = self.weight_block_size
        layer.fp8rt_grid = grid
        theirs = extra_weight_attrs["weight_loader"]
        weight = ModelWeightParameter(
            data=torch.empty(grid.rows, grid.columns, dtype=torch.float8_e4m3fn), input_dim=1, output_dim=0,
            weight_loader=quantizing_loader(layer, self.decision, theirs))
        layer.register_parameter("weight", weight)
        # The name that checkpoints have. Ones: a scale that never arrives gives numbers, which the receipt tells.
        scales = BlockQuantScaleParameter(
            data=torch.ones(grid.scale_rows, grid.scale_columns, dtype=torch.float32), input_dim=1, output_dim=0,
            weight_loader=theirs)
        layer.register_parameter("weight_scale_inv", scales)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Prepares every number of rows. The parameters stay what and where they are."""
        layer.input_scale = None
        bias = layer.bias if isinstance(getattr(layer, "bias", None), Parameter) else None
        # vLLM leaves a bias out of apply where it is added later.
        for given in {bias if not getattr(layer, "skip_bias_add", False) else None, None}:
            torch.ops.fp8rt.linear_prepare(layer.weight, layer.weight_scale_inv, self.max_rows, given, self.input_dtype,
                                           **self._settings(layer))

    def _settings(self, layer: torch.nn.Module) -> dict[str, Any]:
        return {"activation_recipe": self.decision.activation_recipe,
                "activation_scale_format": self.decision.activation_scale_format,
                "batch_invariant": self.quant_config.batch_invariant, "backends": self.backends,
                "part_rows": layer.fp8rt_grid.part_rows}

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty(rows.shape[0], layer.weight.shape[0], dtype=x.dtype, device=x.device)
        torch.ops.fp8rt.linear_out(rows, layer.weight, layer.weight_scale_inv, y, bias, **self._settings(layer))
        return y.view(*x.shape[:-1], y.shape[-1])
