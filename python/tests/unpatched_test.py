"""Nothing of vLLM is patched: every function, method and class of its modules is the same object after the plugin is
loaded, and so is the code of each. Registering adds to vLLM's own registries, and to nothing else.
"""

import importlib
import inspect
import pkgutil
import sys
import types
import unittest

# What the plugin builds on, and what others patch.
MODULES = [
    "vllm.config",
    "vllm.distributed.parallel_state",
    "vllm.device_allocator",
    "vllm.device_allocator.sleep_mode_backend",
    "vllm.envs",
    "vllm.model_executor.layers.fused_moe",
    "vllm.model_executor.custom_op",
    "vllm.model_executor.layers.linear",
    "vllm.model_executor.layers.logits_processor",
    "vllm.model_executor.layers.quantization",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.layers.quantization.kv_cache",
    "vllm.model_executor.layers.quantization.utils.fp8_utils",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.model_loader.base_loader",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.model_loader.reload",
    "vllm.model_executor.model_loader.utils",
    "vllm.model_executor.model_loader.weight_utils",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.utils",
    "vllm.model_executor.parameter",
    "vllm.model_executor.utils",
    "vllm.plugins",
    "vllm.v1.worker.worker_base",
    "torch",
    "torch.nn.parameter",
]
# Lists and tables that exist to be added to; caches that fill as they are used.
REGISTRIES = {
    "vllm.model_executor.custom_op": {"op_registry_oot"},
    "vllm.model_executor.layers.quantization": {"QUANTIZATION_METHODS", "_CUSTOMIZED_METHOD_TO_QUANT_CONFIG"},
    "vllm.model_executor.layers.linear": {"WEIGHT_LOADER_V2_SUPPORTED"},
}


def codes(owner, name, seen):
    """What a module or a class holds, by name: objects, and the code of functions, which may be exchanged in place."""
    for key, value in list(vars(owner).items()):
        place = f"{name}.{key}"
        yield place, id(value)
        function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        function = inspect.unwrap(function) if isinstance(function, types.FunctionType) else function
        if isinstance(function, types.FunctionType):
            yield f"{place} code", id(function.__code__)
            yield f"{place} defaults", repr(function.__defaults__)
        if isinstance(value, type) and value.__module__.startswith("vllm.") and value not in seen:
            seen.add(value)
            yield f"{place} bases", tuple(map(id, value.__bases__))
            yield from codes(value, place, seen)


def snapshot():
    result, seen = {}, set()
    for name in sorted(sys.modules):
        module = sys.modules[name]
        if isinstance(module, types.ModuleType) and (name.startswith("vllm.") or name in MODULES):
            result |= dict(codes(module, name, seen))
    return result


def contents():
    """Every list and table at the top of a module of vLLM, by its length."""
    return {
        f"{name}.{key}": len(value)
        for name, module in sorted(sys.modules.items())
        if name.startswith("vllm.")
        for key, value in vars(module).items()
        if isinstance(value, (list, dict, set)) and not key.startswith("__")
    }


class Unpatched(unittest.TestCase):
    def test_vllm_is_the_same_before_and_after(self):
        for name in MODULES:
            importlib.import_module(name)
        before, lengths = snapshot(), contents()
        self.assertGreater(len(before), 10_000)
        known = set(sys.modules)
        plugin = importlib.import_module("fp8rt_vllm.plugin")
        plugin.register()
        package = importlib.import_module("fp8rt_vllm")
        ours = [module.name for module in pkgutil.iter_modules(package.__path__)]
        self.assertIn("linear", ours)
        for name in ours:
            importlib.import_module(f"fp8rt_vllm.{name}")
        after = snapshot()
        # A module that was imported now is an attribute of its package.
        new = set(sys.modules) - known
        self.assertEqual(sorted(key for key, value in before.items() if after.get(key) != value), [])
        added = [key for key in after.keys() - before.keys() if " " not in key]
        self.assertEqual([key for key in added if not any(f"{key}.".startswith(f"{module}.") for module in new)], [])
        changed = {key for key, length in lengths.items() if contents()[key] != length}
        allowed = {f"{module}.{name}" for module, names in REGISTRIES.items() for name in names}
        self.assertLessEqual(changed, allowed)
        self.assertIn("vllm.model_executor.layers.quantization._CUSTOMIZED_METHOD_TO_QUANT_CONFIG", changed)
        # vLLM may call it again.
        lengths = contents()
        plugin.register()
        self.assertEqual(snapshot(), after)
        self.assertEqual(contents(), lengths)

    def test_the_comparison_sees_a_patch(self):
        from unittest import mock

        importlib.import_module("vllm.model_executor.layers.quantization.fp8")
        before = snapshot()
        target = "vllm.model_executor.layers.quantization.fp8.Fp8LinearMethod.process_weights_after_loading"
        with mock.patch(target, lambda self, layer: None):
            during = snapshot()
        self.assertIn(target, {key for key, value in before.items() if during.get(key) != value})


if __name__ == "__main__":
    unittest.main()
