"""The linear method: E4M3 weights in blocks, and this library's op on them with 16-bit input."""

import types
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod
from vllm.model_executor.parameter import BlockQuantScaleParameter, ModelWeightParameter

from fp8rt import library

from . import loading
from .layer import BLOCK, LayerState, blocks, scale_rows

logger = init_logger(f"vllm.{__name__}")


@register_weight_loader_v2_supported_method
class Fp8rtLinearMethod(Fp8LinearMethod):
    """One for each layer. vLLM's kernels are never chosen, so nothing of `fp8_linear` exists."""

    # What another process prepared lacks the scales, which are no parameter.
    supports_pre_processed_weights = False

    def __init__(self, quant_config: Any, prefix: str, decision: library.Decision):
        super().__init__(quant_config)
        library.register_ops()
        self.prefix = prefix
        self.decision = decision
        self.use_marlin = False
        self.use_deep_gemm = False
        self.fp8_linear = None
        self.backends = quant_config.backends
        self.batch_invariant = bool(quant_config.batch_invariant)
        # A checkpoint of codes and scales: then vLLM must find a parameter for the scales.
        self.serialized = quant_config.serialized
        config = get_current_vllm_config()
        self.max_m = config.scheduler_config.max_num_batched_tokens
        self.dummy = config.load_config.load_format == "dummy"
        self.part_rows: list[int] | None = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Any shard and any merged parts: each part has its own grid of blocks."""
        rows, columns = sum(output_partition_sizes), input_size_per_partition
        layer.logical_widths = output_partition_sizes
        layer.input_size_per_partition = columns
        layer.output_size_per_partition = rows
        layer.orig_dtype = params_dtype
        layer.weight_block_size = list(self.weight_block_size)
        layer.input_scale = None
        parts = [size for size in output_partition_sizes if size]
        self.part_rows = parts if len(parts) > 1 else None
        # What vLLM's dequantization (of kv_b_proj) asks for: it knows whole blocks; of another weight it then takes
        # this method's product with the identity. No kernel is chosen by it.
        self.use_deep_gemm = scale_rows(parts) * BLOCK != rows or columns % BLOCK != 0
        self.input_dtype = params_dtype

        health = self.quant_config.health
        # Not a parameter, nor in state_dict: how the layer is filled.
        loader = extra_weight_attrs["weight_loader"]
        layer.fp8rt = {"weight": LayerState(self.prefix, parts, columns, self.decision, loader, health)}
        health.add(layer)
        weight = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
        loader = types.MethodType(loading.load_weight, layer)
        layer.register_parameter(
            "weight", ModelWeightParameter(data=weight, input_dim=1, output_dim=0, weight_loader=loader)
        )
        scales = torch.ones(scale_rows(parts), blocks(columns), dtype=torch.float32)
        if self.serialized:
            loader = types.MethodType(loading.load_scales, layer)
            layer.register_parameter(
                "weight_scale_inv",
                BlockQuantScaleParameter(data=scales, input_dim=1, output_dim=0, weight_loader=loader),
            )
        else:
            # vLLM's layerwise reload counts parameters and buffers, and no scale arrives from a trainer.
            layer.weight_scale_inv = scales

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Checks that everything arrived, and prepares the op for every M. Quantizes nothing; may be called again."""
        state = layer.fp8rt["weight"]
        state.check(self.dummy)
        if state.prepared:
            return
        bias = getattr(layer, "bias", None)
        # A layer with a bias may leave it to its caller, or to another rank.
        for given in (None, bias) if bias is not None else (None,):
            line = torch.ops.fp8rt.linear_prepare(
                layer.weight, layer.weight_scale_inv, self.max_m, given, self.input_dtype, *self.settings()
            )
        state.prepared = line
        logger.info_once("fp8rt: %s", line)

    def settings(self) -> tuple:
        """The settings that every op of a linear ends in."""
        return (
            self.decision.activation_recipe,
            self.decision.activation_scale_format,
            None,
            self.batch_invariant,
            self.backends,
            self.part_rows,
        )

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x of 16 bits: the op quantizes it. Into memory that the compiler may place."""
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty(rows.shape[0], layer.weight.shape[0], dtype=x.dtype, device=x.device)
        torch.ops.fp8rt.linear_out(rows, layer.weight, layer.weight_scale_inv, y, bias, *self.settings())
        return y.view(*x.shape[:-1], y.shape[-1])
