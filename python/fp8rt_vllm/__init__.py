"""Block-scaled FP8 of fp8rt in vLLM. vLLM finds the plugin by its entry point; nothing here needs to be imported first.

What people call is imported at its first use, so that this package loads without torch and without vLLM.
"""

import importlib

_WHERE = {
    "vllm_kwargs": "settings",
    "load_weights": "refit",
    "begin": "refit",
    "fingerprint": "worker",
    "receipts": "worker",
    "check": "worker",
    "MixedModelError": "health",
    "WorkerExtension": "worker",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
