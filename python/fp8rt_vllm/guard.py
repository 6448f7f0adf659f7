"""Where a mixed model is refused. vLLM computes the logits of every step in Python, after the model and outside of its
compiled code and its graphs, with a layer that may be replaced by registration: ours asks for the model's health first.
"""

from typing import Any

from vllm.config import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.model_executor.custom_op import maybe_get_oot_by_class
from vllm.model_executor.layers.logits_processor import LogitsProcessor

logger = init_logger(f"vllm.{__name__}")


class GuardedLogitsProcessor(LogitsProcessor):
    """vLLM's own for models that are not of this plugin, but for a look at an attribute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config_or_none()
        self.health = getattr(config.quant_config, "health", None) if config is not None else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.health is not None:
            self.health.check()
        return super().forward(*args, **kwargs)


def register() -> None:
    """Once a process."""
    used = maybe_get_oot_by_class(LogitsProcessor)
    if used is GuardedLogitsProcessor:
        return
    if used is not LogitsProcessor:
        logger.warning("fp8rt: %s is vLLM's logits processor here: it will not refuse to generate after a refit that "
                       "failed; ask fp8rt_vllm.check(llm)", used.__qualname__)
        return
    LogitsProcessor.register_oot(GuardedLogitsProcessor)
