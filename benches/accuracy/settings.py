"""What is compared: engines, and the settings that each of them can take by a refit. Plain data."""

import dataclasses

# A scale that is wrong must be seen: of one tensor of the second layer it is doubled.
BROKEN = "model.layers.1.mlp.down_proj.weight"


@dataclasses.dataclass(frozen=True)
class Setting:
    """`recipe`: the weights are sent anew in this one, as codes and scales; without it they are as the engine loaded
    them.
    """

    name: str
    group: str
    recipe: str | None = None
    scale_format: str = "FP32"
    broken: bool = False


@dataclasses.dataclass(frozen=True)
class Engine:
    """A process of vLLM. `checkpoint`: bf16, or the cast that made one in codes. `vllm_cfg`: NeMo-RL's settings, for
    the plugin; without them vLLM's own.
    """

    name: str
    settings: tuple[Setting, ...]
    checkpoint: str = "bf16"
    vllm_cfg: dict | None = None
    batch_invariant: bool = False
    environment: dict = dataclasses.field(default_factory=dict)

    @property
    def needs_gpu(self) -> bool:
        """vLLM's own FP8 in blocks has no kernel for the host."""
        return self.checkpoint != "bf16"


def ours(name: str, *settings: Setting, batch_invariant: bool = False, **vllm_cfg) -> Engine:
    return Engine(name, settings, vllm_cfg={"precision": "fp8"} | vllm_cfg, batch_invariant=batch_invariant)


def peer(name: str, cast: str, e8m0: str) -> Engine:
    return Engine(name, (Setting(name, "peer"),), cast, environment={"VLLM_USE_DEEP_GEMM_E8M0": e8m0})


DEFAULT = "ours"
FLOOR = Engine("bf16", (Setting("bf16 on itself", "floor"),))
ENGINES = (
    peer("vLLM FP8, E8M0 on", "vllm", "1"),
    peer("vLLM FP8, E8M0 off", "vllm", "0"),
    peer("NeMo-RL's cast", "nemo_rl", "0"),
    ours(
        DEFAULT,
        Setting(DEFAULT, "ours"),
        # Once as it was loaded and once refitted: the same weights, other samples.
        Setting("ours, recipe NEMO_RL, refitted", "ours", "NEMO_RL"),
        Setting("ours, recipe TE", "ours", "TE"),
        Setting("ours, recipe DEEPGEMM", "ours", "DEEPGEMM"),
        Setting("ours, recipe VLLM", "ours", "VLLM"),
        Setting("ours, power-of-two weights", "ours", "NEMO_RL", "POW2"),
        Setting("control: one scale doubled", "control", "NEMO_RL", broken=True),
    ),
    ours(
        "ours, power-of-two activations",
        Setting("ours, power-of-two activations", "ours"),
        Setting("ours, power-of-two weights and activations", "ours", "NEMO_RL", "POW2"),
        pow2_activation_scaling_factors=True,
    ),
    ours(
        "ours, first and last layer bf16",
        Setting("ours, first and last layer bf16", "ours"),
        num_first_layers_in_bf16=1,
        num_last_layers_in_bf16=1,
    ),
    ours("ours, batch-invariant", Setting("ours, batch-invariant", "ours"), batch_invariant=True),
)
