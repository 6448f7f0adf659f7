"""The method of routed experts: E4M3 slabs in blocks, filled expert by expert, and vLLM's Triton experts on them.

vLLM chooses among kernels by platform, and some want the halves of gate and up in another order, or other scales: its
post-load step then makes new parameters. Here the kernel is always Triton's, which takes the slabs as they lie.
"""

import functools
import types
from typing import Any

import torch
from vllm import envs
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.oracle.fp8 import (
    Fp8MoeBackend,
    make_fp8_moe_kernel,
    make_fp8_moe_quant_config,
)
from vllm.model_executor.layers.fused_moe.routed_experts import FusedMoeWeightScaleSupported
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8Dynamic128Sym, kFp8Static128BlockSym
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.deep_gemm import is_deep_gemm_e8m0_used

from fp8rt import abi, library

from . import loading
from .layer import BLOCK, LayerState, blocks
from .settings import MOE_BACKEND

logger = init_logger(f"vllm.{__name__}")

# Of experts that stay as they are: backends that keep the order in which weights arrive. The others are not refitted
# in place, since their post-load step moves what arrived.
IN_ORDER = ("TRITON", "BATCHED_TRITON")


def kept(layer: RoutedExperts, prefix: str) -> UnquantizedFusedMoEMethod:
    """The method of experts that are not quantized."""
    method = UnquantizedFusedMoEMethod(layer.moe_config)
    backend = method.unquantized_backend.name
    if backend not in IN_ORDER:
        raise ValueError(
            f"{prefix} stays in 16 bits, and moe_backend {layer.moe_config.moe_backend!r} gives {backend}, which "
            f"reorders its weights after loading: a refit would be lost; LLM(...) needs moe_backend={MOE_BACKEND!r}"
        )
    return method


class Fp8rtMoEMethod(FusedMoEMethodBase):
    """One for each layer of experts."""

    # What another process prepared lacks the scales, which are no parameter.
    supports_pre_processed_weights = False

    def __init__(self, quant_config: Any, layer: RoutedExperts, prefix: str, decision: library.Decision):
        super().__init__(layer.moe_config)
        library.register_ops()
        self.prefix = prefix
        self.decision = decision
        # A checkpoint of codes and scales: then vLLM must find a parameter for the scales.
        self.serialized = quant_config.serialized
        self.health = quant_config.health
        self.dummy = get_current_vllm_config().load_config.load_format == "dummy"
        self.check_deployment()
        self.check_activations(bool(quant_config.batch_invariant))

    def check_deployment(self) -> None:
        """Refuses what the kernel, or a refit in place, cannot give."""
        moe = self.moe
        if moe.moe_backend not in ("auto", MOE_BACKEND):
            raise ValueError(f"{self.prefix}: moe_backend is {moe.moe_backend!r}, FP8 experts need {MOE_BACKEND!r}")
        if moe.moe_parallel_config.enable_eplb:
            raise ValueError(f"{self.prefix}: enable_eplb is true; FP8 experts stay where they are, it must be false")
        shard, ranks = moe.intermediate_size_per_partition, moe.moe_parallel_config.tp_size
        if shard % BLOCK:
            raise ValueError(
                f"{self.prefix}: an intermediate size of {moe.intermediate_size} over tensor parallel {ranks} gives "
                f"{shard} a rank, must be a multiple of {BLOCK}; expert parallel keeps experts whole"
            )
        if moe.hidden_dim % BLOCK:
            raise ValueError(f"{self.prefix}: the hidden size is {moe.hidden_dim}, must be a multiple of {BLOCK}")
        supported, reason = TritonExperts.is_supported_config(
            TritonExperts, moe, kFp8Static128BlockSym, kFp8Dynamic128Sym, TritonExperts.activation_format()
        )
        if supported and moe.moe_parallel_config.use_batched_activation_format:
            supported, reason = False, f"all2all_backend {moe.moe_parallel_config.all2all_backend!r} sends batches"
        if not supported:
            raise ValueError(f"{self.prefix}: vLLM's Triton experts cannot run here: {reason}")

    def check_activations(self, batch_invariant: bool) -> None:
        """vLLM's kernels quantize what enters experts, and know only the environment."""
        recipe = abi.RECIPES[self.decision.activation_recipe]
        wanted, stored = (
            abi.SCALE_FORMATS[number]
            for number in (self.decision.activation_scale_format, self.decision.weight_scale_format)
        )
        if recipe not in ("DEFAULT", "VLLM"):
            raise ValueError(f"{self.prefix}: activation.recipe is {recipe!r}, vLLM's experts have 'VLLM'")
        if stored not in ("FP32", "POW2"):
            raise ValueError(f"{self.prefix}: weight.scale_format is {stored!r}, vLLM's experts read float32")
        given = "POW2" if is_deep_gemm_e8m0_used() else "FP32"
        if wanted != given:
            raise ValueError(
                f"{self.prefix}: activation.scale_format is {wanted!r}, and vLLM's experts make {given!r}: POW2 "
                "needs DeepGEMM, VLLM_USE_DEEP_GEMM=1 and VLLM_USE_DEEP_GEMM_E8M0=1, FP32 one of these to be 0; here "
                f"they are {int(envs.VLLM_USE_DEEP_GEMM)} and {int(envs.VLLM_USE_DEEP_GEMM_E8M0)}"
            )
        if batch_invariant and not envs.VLLM_BATCH_INVARIANT:
            raise ValueError(
                f"{self.prefix}: batch_invariant is true, and VLLM_BATCH_INVARIANT, which vLLM's experts follow, is 0"
            )

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """w13 holds gate and up, each with its own grid of blocks; w2 is down. `num_experts`: this rank's."""
        if hidden_size != self.moe.hidden_dim_unpadded:
            raise ValueError(
                f"{self.prefix}: all2all_backend {self.moe.moe_parallel_config.all2all_backend!r} pads the hidden size "
                f"{self.moe.hidden_dim_unpadded} to {hidden_size}; nothing would fill the rest"
            )
        shard, loader = intermediate_size_per_partition, extra_weight_attrs["weight_loader"]
        layer.orig_dtype = params_dtype
        layer.weight_block_size = [BLOCK, BLOCK]
        layer.w13_input_scale = layer.w2_input_scale = None
        # Not a parameter, nor in state_dict: how the layer is filled.
        layer.fp8rt = {}
        self.health.add(layer)
        for name, parts, columns in (
            ("w13_weight", [shard] * (1 + self.moe.is_act_and_mul), hidden_size),
            ("w2_weight", [hidden_size], shard),
        ):
            # vLLM's loader tells weights from scales by this name.
            own = functools.partial(loader, weight_name=name)
            layer.fp8rt[name] = LayerState(
                f"{self.prefix}.{name}", parts, columns, self.decision, own, self.health, num_experts
            )
            self.create_weight(layer, name, num_experts, sum(parts), columns)
            if self.moe.has_bias:
                bias = torch.zeros(num_experts, sum(parts), dtype=params_dtype)
                layer.register_parameter(name.replace("weight", "bias"), parameter(bias, extra_weight_attrs))

    def create_weight(self, layer: RoutedExperts, name: str, experts: int, rows: int, columns: int) -> None:
        weight = torch.zeros(experts, rows, columns, dtype=torch.float8_e4m3fn)
        attributes = {"weight_loader": types.MethodType(load, layer), "fp8rt_weight": name, "fp8rt_scales": False}
        layer.register_parameter(name, parameter(weight, attributes))
        scales = torch.ones(experts, blocks(rows), blocks(columns), dtype=torch.float32)
        if self.serialized:
            attributes |= {"fp8rt_scales": True, "quant_method": FusedMoeWeightScaleSupported.BLOCK.value}
            layer.register_parameter(f"{name}_scale_inv", parameter(scales, attributes))
        else:
            # vLLM's layerwise reload counts parameters and buffers, and no scale arrives from a trainer.
            setattr(layer, f"{name}_scale_inv", scales)

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """Checks that everything arrived, and builds the kernel once, over tensors that stay. Quantizes nothing."""
        for state in layer.fp8rt.values():
            state.check(self.dummy)
        if self.moe_kernel is not None:
            return
        self.moe_quant_config = self.get_fused_moe_quant_config(layer)
        self.moe_kernel = make_fp8_moe_kernel(
            moe_quant_config=self.moe_quant_config,
            moe_config=self.moe,
            experts_cls=TritonExperts,
            fp8_backend=Fp8MoeBackend.TRITON,
            routing_tables=layer._expert_routing_tables(),
        )
        logger.info_once("fp8rt: routed experts run in vLLM's %s", TritonExperts.__name__)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> Any:
        """vLLM may ask for it again."""
        return make_fp8_moe_quant_config(
            fp8_backend=Fp8MoeBackend.TRITON,
            w1_scale=layer.w13_weight_scale_inv,
            w2_scale=layer.w2_weight_scale_inv,
            a1_scale=None,
            a2_scale=None,
            w1_bias=getattr(layer, "w13_bias", None),
            w2_bias=getattr(layer, "w2_bias", None),
            block_shape=[BLOCK, BLOCK],
            swiglu_limit=layer.swiglu_limit,
            gemm1_alpha=layer.swiglu_alpha,
            gemm1_beta=layer.swiglu_beta,
        )

    def apply(
        self,
        layer: RoutedExperts,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        return self.moe_kernel.apply(
            x,
            layer.w13_weight,
            layer.w2_weight,
            topk_weights,
            topk_ids,
            activation=layer.activation,
            global_num_experts=layer.global_num_experts,
            expert_map=layer.expert_map,
            apply_router_weight_on_input=layer.apply_router_weight_on_input,
            shared_experts=shared_experts,
            shared_experts_input=shared_experts_input,
        )


def parameter(data: torch.Tensor, attributes: dict[str, Any]) -> torch.nn.Parameter:
    made = torch.nn.Parameter(data, requires_grad=False)
    set_weight_attrs(made, attributes)
    return made


def load(
    self: RoutedExperts,
    param: torch.Tensor,
    loaded_weight: torch.Tensor,
    weight_name: str,
    shard_id: str,
    expert_id: int,
    return_success: bool = False,
) -> bool | None:
    """The loader of codes, and of serialized scales, called as vLLM's own: one expert of all ranks', or a slab."""
    # Whether the expert is on this rank.
    mine = self.expert_map_manager.map_global_to_local(expert_id) != -1
    if mine:
        name, call = param.fp8rt_weight, {"shard_id": shard_id, "expert_id": expert_id}
        check_turn(self.fp8rt[name], loaded_weight, shard_id, expert_id)
        if param.fp8rt_scales:
            loading.fill_scales(self.fp8rt[name], param, loaded_weight, (), call)
        else:
            loading.fill(self.fp8rt[name], getattr(self, f"{name}_scale_inv"), param, loaded_weight, (), call)
    return mine if return_success else None


def check_turn(state: LayerState, loaded_weight: torch.Tensor, *call: Any) -> None:
    """vLLM 0.25.1 guesses by its shape whether a slab is transposed, and guesses wrong for scales of slabs."""
    if loaded_weight.is_meta or loaded_weight.dim() != 2 or 1 in loaded_weight.shape:
        return
    turned = loaded_weight.stride(-1) != 1
    if state.turned.setdefault(call, turned) != turned:
        raise ValueError(
            f"fp8rt: {state.prefix}, expert {call[1]}: of codes and scales vLLM transposed only one; bring this "
            "checkpoint expert by expert, or through fp8rt_vllm.load_weights"
        )


# Models ask whether a loader knows experts.
load.supports_moe_loading = True
