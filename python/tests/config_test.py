"""The configuration as vLLM makes, pickles and asks it."""

import json
import logging
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.fp8 import Fp8Config

from fp8rt_vllm import agreement, plugin
from fp8rt_vllm.settings import vllm_kwargs

plugin.register()
from fp8rt_vllm.config import Fp8rtConfig, Fp8TakeOverConfig  # noqa: E402
from fp8rt_vllm.linear import Fp8rtLinearMethod  # noqa: E402

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "dynamic"}
NO_DEEP_GEMM = {"VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"}


def bare(kind):
    """A layer of a kind, without what it holds."""
    return kind.__new__(kind)


class InVllm(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = pathlib.Path(folder.name)
        self.write({})

    def write(self, more):
        (self.model / "config.json").write_text(json.dumps(LLAMA | more))

    def model_config(self, **kwargs):
        return ModelConfig(
            model=str(self.model), tokenizer=str(self.model), skip_tokenizer_init=True, dtype="bfloat16", **kwargs
        )

    def vllm_config(self, vllm_cfg=None, **kwargs):
        if vllm_cfg is not None:
            kwargs, _ = vllm_kwargs(vllm_cfg, self.model, kwargs)
            for key in ("kv_cache_dtype", "moe_backend"):
                kwargs.pop(key, None)
        return VllmConfig(model_config=self.model_config(**kwargs), device_config=DeviceConfig(device="cpu"))

    def method(self, vllm_config, kind, prefix):
        with set_current_vllm_config(vllm_config, check_compile=False), mock.patch.object(agreement, "_checked", True):
            return vllm_config.quant_config.get_quant_method(bare(kind), prefix)


class Made(InVllm):
    def test_settings_reach_the_configuration(self):
        config = self.vllm_config({"precision": "fp8", "num_last_layers_in_bf16": 1}).quant_config
        self.assertIs(type(config), Fp8rtConfig)
        self.assertEqual(config.get_name(), "fp8rt")
        self.assertEqual(json.loads(config.policy.text)["num_hidden_layers"], 4)
        self.assertFalse(config.serialized)

    def test_it_is_pickled_into_other_processes(self):
        config = self.vllm_config({"precision": "fp8", "quantization_ignored_layer_kws": ["o_proj"]}).quant_config
        config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
        other = pickle.loads(pickle.dumps(config))
        self.assertEqual(other.policy.text, config.policy.text)
        self.assertEqual(other.packed_modules_mapping, config.packed_modules_mapping)

    def test_the_key_of_compiled_code_depends_on_the_settings(self):
        hashes = {
            self.vllm_config({"precision": "fp8", "pow2_activation_scaling_factors": pow2}).compute_hash()
            for pow2 in (False, True)
        }
        self.assertEqual(len(hashes), 2)

    def test_layers_get_their_methods(self):
        config = self.vllm_config({"precision": "fp8", "num_first_layers_in_bf16": 1})
        self.assertIsInstance(self.method(config, LinearBase, "model.layers.1.mlp.down_proj"), Fp8rtLinearMethod)
        self.assertIsInstance(self.method(config, LinearBase, "model.layers.0.mlp.down_proj"), UnquantizedLinearMethod)
        report = config.quant_config.report()
        self.assertTrue(report["model.layers.1.mlp.down_proj"].startswith("fp8: "))
        self.assertIn("num_first_layers_in_bf16", report["model.layers.0.mlp.down_proj"])

    def test_a_fused_layer_cannot_be_parted(self):
        config = self.vllm_config({"precision": "fp8", "quantization_ignored_layer_kws": ["q_proj"]})
        config.quant_config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
        with self.assertRaisesRegex(RuntimeError, "q_proj"):
            self.method(config, LinearBase, "model.layers.1.self_attn.qkv_proj")

    def test_deep_gemm_off_means_off_in_vllm_too(self):
        config = self.vllm_config({"precision": "fp8", "use_deep_gemm": False})
        with self.assertRaisesRegex(ValueError, "use_deep_gemm is false, and VLLM_USE_DEEP_GEMM"):
            self.method(config, LinearBase, "model.layers.1.mlp.down_proj")
        with mock.patch.dict(os.environ, NO_DEEP_GEMM):
            method = self.method(config, LinearBase, "model.layers.1.mlp.down_proj")
        self.assertFalse(method.use_deep_gemm)
        self.assertEqual(method.backends, config.quant_config.policy.backends)
        self.assertNotEqual(method.backends, 0)

    def test_warnings_of_the_settings_are_logged(self):
        with self.assertLogs("vllm.fp8rt_vllm.config", logging.WARNING) as logged:
            self.vllm_config({"precision": "fp8", "use_weight_pow2_scale": True})
        self.assertIn("use_weight_pow2_scale", logged.output[0])

    def test_batch_invariant_follows_vllms_switch(self):
        for value in ("0", "1"):
            with mock.patch.dict(os.environ, {"VLLM_BATCH_INVARIANT": value}):
                self.assertEqual(Fp8rtConfig({"precision": "fp8"}).batch_invariant, value == "1")
        config = Fp8rtConfig.from_config({"settings": {"precision": "fp8"}, "batch_invariant": True})
        self.assertTrue(config.batch_invariant)

    def test_prefixes_of_the_engine(self):
        from vllm.model_executor.models.utils import WeightsMapper

        config = Fp8rtConfig({"precision": "fp8", "quantization_ignored_layer_kws": ["model.language_model.layers.3."]})
        config.apply_vllm_mapper(
            WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model.", "visual.": None})
        )
        self.assertFalse(config.decide("language_model.model.layers.3.mlp.down_proj").fp8)
        self.assertTrue(config.decide("language_model.model.layers.4.mlp.down_proj").fp8)

    def test_an_unknown_key_beside_settings(self):
        with self.assertRaisesRegex(ValueError, "activation_sheme"):
            Fp8rtConfig.from_config({"settings": {"precision": "fp8"}, "activation_sheme": "dynamic"})
        with self.assertRaisesRegex(ValueError, r"weight_block_size is \[64, 64\]"):
            Fp8rtConfig.from_config({"settings": {"precision": "fp8"}, "weight_block_size": [64, 64]})


class Checkpoints(InVllm):
    """Of vLLM's own "fp8"."""

    def test_they_stay_vllms(self):
        for words in (BLOCKS, PER_TENSOR):
            self.write({"quantization_config": words})
            self.assertIs(type(self.vllm_config().quant_config), Fp8Config)

    def test_ours_if_asked_for_by_name(self):
        self.write({"quantization_config": BLOCKS | {"modules_to_not_convert": ["model.layers.2.mlp.down_proj"]}})
        config = self.vllm_config(quantization="fp8rt").quant_config
        self.assertIs(type(config), Fp8rtConfig)
        self.assertTrue(config.serialized)
        self.assertFalse(config.decide("model.layers.2.mlp.down_proj").fp8)
        self.assertTrue(config.decide("model.layers.1.mlp.down_proj").fp8)

    def test_a_scale_per_tensor_is_refused(self):
        self.write({"quantization_config": PER_TENSOR})
        with self.assertRaisesRegex(ValueError, "does not match"):
            self.vllm_config(quantization="fp8rt")

    def test_taking_over_the_name(self):
        from vllm.model_executor.layers import quantization

        registered = quantization._CUSTOMIZED_METHOD_TO_QUANT_CONFIG
        with mock.patch.dict(registered), mock.patch.dict(os.environ, {plugin.TAKE_OVER: "1"}):
            plugin.register()
            self.write({"quantization_config": BLOCKS})
            self.assertIs(type(self.vllm_config().quant_config), Fp8TakeOverConfig)
            self.write({"quantization_config": PER_TENSOR})
            self.assertIs(type(self.vllm_config().quant_config), Fp8Config)
        self.assertIs(get_quantization_config("fp8"), Fp8Config)
        unclear = mock.patch.dict(os.environ, {plugin.TAKE_OVER: "yes"})
        with unclear, self.assertRaisesRegex(ValueError, plugin.TAKE_OVER):
            plugin.register()


class WithoutThePlugin(InVllm):
    def start(self, script, **environment):
        kwargs, _ = vllm_kwargs({"precision": "fp8"}, self.model)
        begin = f"""
import pickle
from vllm.config import ModelConfig
KWARGS = {dict(kwargs)!r}
MODEL = {str(self.model)!r}
def model():
    return ModelConfig(model=MODEL, tokenizer=MODEL, skip_tokenizer_init=True, dtype="bfloat16",
                       quantization=KWARGS["quantization"], hf_overrides=KWARGS["hf_overrides"])
"""
        return subprocess.run(
            [sys.executable, "-c", begin + script], text=True, capture_output=True, env=os.environ | environment
        )

    def test_the_method_is_unknown(self):
        done = self.start("model()", VLLM_PLUGINS="another")
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, "Unknown quantization method: fp8rt|Input should be")

    def test_a_worker_that_cannot_load_the_library_stops(self):
        config = pickle.dumps(self.vllm_config({"precision": "fp8"}).quant_config)
        script = f"print(type(pickle.loads({config!r})))"
        self.assertIn("Fp8rtConfig", self.start(script).stdout)
        done = self.start(script, FP8RT_LIBRARY="/nowhere/libfp8rt.so.0")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/nowhere/libfp8rt.so.0", done.stderr)


if __name__ == "__main__":
    unittest.main()
