#!/usr/bin/env python3
"""What loading the plugin does to vLLM and what it leaves alone; and the way of NeMo-RL's settings to vLLM."""
import inspect
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import unittest

from support import CONFIG, version, vllm_config

from fp8rt_vllm import library, vllm_kwargs

# In a process of its own: vLLM before and after.
UNCHANGED = """
import importlib, inspect, sys
sys.path[:0] = {path!r}
NAMES = ["vllm.model_executor.layers.linear", "vllm.model_executor.layers.quantization",
         "vllm.model_executor.layers.quantization.fp8", "vllm.model_executor.parameter",
         "vllm.model_executor.layers.quantization.utils.fp8_utils", "vllm.model_executor.model_loader.weight_utils",
         "vllm.model_executor.model_loader.utils", "vllm.v1.worker.gpu_worker", "vllm.v1.executor.abstract",
         "vllm.utils.deep_gemm", "vllm.plugins"]

def functions():
    found = {{}}
    for name in NAMES:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            found[name, key] = id(value)
            if inspect.isclass(value):
                found.update({{(name, key, inner): id(one) for inner, one in vars(value).items() if callable(one)}})
    return found

functions()
before = functions()
assert len(before) > 500, len(before)
from fp8rt_vllm import plugin
plugin.register(), plugin.register()
after = functions()
changed = sorted(key for key in before if after.get(key) != before[key])
assert not changed, changed
"""


class Plugin(unittest.TestCase):
    def test_nothing_of_vllm_is_changed(self):
        code = UNCHANGED.format(path=[str(pathlib.Path(__file__).resolve().parents[1])])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])

    def test_n9_a_process_without_the_plugin_does_not_start(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
            keywords, _ = vllm_kwargs({"precision": "fp8"})
            code = (f"from vllm.config import ModelConfig\nModelConfig(model={folder!r}, skip_tokenizer_init=True, "
                    f"dtype='bfloat16', **{keywords!r})")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300,
                                  env={**os.environ, "VLLM_PLUGINS": ""})
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, "(?i)unknown quantization method.*fp8rt|fp8rt.*quantization")

    def test_a_configuration_travels_between_processes(self):
        with vllm_config({"precision": "fp8", "num_last_layers_in_bf16": 1}) as config:
            text = config.quant_config.policy.text
            copy = pickle.loads(pickle.dumps(config.quant_config))
            self.assertEqual(copy.policy.text, text)
            self.assertEqual((copy.get_name(), copy.weight_block_size), ("fp8rt", [128, 128]))

    def test_policies_of_two_processes_are_compared_by_setting(self):
        one, other = (library.Policy(json.dumps({"precision": "fp8", "num_first_layers_in_bf16": first})) for first in (1, 2))
        self.assertNotEqual(one.fingerprint, other.fingerprint)
        self.assertEqual(one.difference(one.text), "")
        self.assertIn("num_first_layers_in_bf16", one.difference(other.text))


class Settings(unittest.TestCase):
    def test_nemo_rls_settings_are_taken_as_they_are(self):
        cfg = {"precision": "fp8", "tensor_parallel_size": 4, "gpu_memory_utilization": 0.6, "use_deep_gemm": True,
               "num_last_layers_in_bf16": 2, "pow2_weight_scaling_factors": True}
        keywords, environment = vllm_kwargs(cfg)
        self.assertEqual(keywords["quantization"], "fp8rt")
        self.assertEqual(keywords["hf_overrides"]["quantization_config"]["settings"], {
            "precision": "fp8", "use_deep_gemm": True, "num_last_layers_in_bf16": 2, "pow2_weight_scaling_factors": True})
        # vLLM's own DeepGEMM must not run, whoever asks.
        self.assertEqual(environment, {"VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"})

    def test_n5_the_users_own_overrides_are_merged(self):
        mine = {"rope_scaling": {"factor": 2}, "quantization_config": {"settings": {"num_first_layers_in_bf16": 3}}}
        keywords, _ = vllm_kwargs({"precision": "fp8"}, mine)
        overrides = keywords["hf_overrides"]
        self.assertEqual(overrides["rope_scaling"], {"factor": 2})
        self.assertEqual(overrides["quantization_config"]["settings"], {"precision": "fp8", "num_first_layers_in_bf16": 3})
        # And the user's object is the user's.
        self.assertNotIn("quant_method", mine["quantization_config"])

    def test_another_method_of_the_users_is_refused(self):
        with self.assertRaisesRegex(ValueError, "'awq'.*'fp8rt'"):
            vllm_kwargs({"precision": "fp8"}, {"quantization_config": {"quant_method": "awq"}})

    def test_without_fp8_nothing_is_set(self):
        self.assertEqual(vllm_kwargs({"precision": "bfloat16"}), ({}, {}))
        self.assertEqual(vllm_kwargs({"precision": "bfloat16"}, {"a": 1}), ({"hf_overrides": {"a": 1}}, {}))

    def test_a_typing_error_travels_to_the_policy(self):
        keywords, _ = vllm_kwargs({"precision": "fp8", "num_first_layer_in_bf16": 1})
        settings = keywords["hf_overrides"]["quantization_config"]["settings"]
        with self.assertRaisesRegex(library.Fp8rtError, "num_first_layers_in_bf16"):
            library.Policy(json.dumps(settings))


if __name__ == "__main__":
    print(f"vLLM {version()}")
    assert inspect.getmodule(vllm_kwargs).__name__ == "fp8rt_vllm.settings"
    sys.exit(not unittest.main(exit=False).result.wasSuccessful())
