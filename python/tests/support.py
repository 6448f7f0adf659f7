"""What the tests share: vLLM's Python without a GPU, a small model's config, and linears of vLLM with our method.

Exits 77 without torch or vLLM.
"""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import tempfile

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
try:
    import torch
    import vllm
    from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
except ImportError as error:
    print(f"no torch, or no vLLM: {error}")
    sys.exit(77)

from fp8rt_vllm import plugin  # noqa: E402

HIDDEN, HEADS, GROUPS, INTERMEDIATE, LAYERS = 512, 8, 2, 896, 4
HEAD = HIDDEN // HEADS
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "vocab_size": 256,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}


@contextlib.contextmanager
def vllm_config(settings=None, rank=0, ranks=1, **more):
    """vLLM's configuration of the small model, current, with `settings` for fp8rt; distributed over `ranks` processes."""
    plugin.register()
    quantization = {"quant_method": "fp8rt", "settings": settings or {"precision": "fp8"}, **more}
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        model = ModelConfig(model=folder, skip_tokenizer_init=True, dtype="bfloat16", quantization="fp8rt",
                            hf_overrides={"quantization_config": quantization})
        config = VllmConfig(model_config=model, device_config=DeviceConfig(device="cpu"))
        config.quant_config = VllmConfig._get_quantization_config(model, config.load_config)
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                where = os.environ.get("FP8RT_TEST_STORE") or f"file://{folder}/store"
                init_distributed_environment(ranks, rank, where, rank, "gloo")
                initialize_model_parallel(ranks)
            yield config


def version():
    return vllm.__version__
