"""NeMo-RL's settings become vLLM's arguments, merged with the user's own. No vLLM is needed here."""

import copy
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

from fp8rt.library import Fp8rtError, Policy
from fp8rt_vllm.settings import PREFIXES, OverridesAfter, vllm_kwargs

MODEL = {"num_hidden_layers": 8, "model_type": "llama"}
# A whole vllm_cfg of NeMo-RL, with what is not about FP8.
WHOLE = {
    "precision": "fp8",
    "async_engine": True,
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 1,
    "gpu_memory_utilization": 0.6,
    "max_model_len": 4096,
    "enforce_eager": False,
    "kv_cache_dtype": "auto",
    "use_deep_gemm": True,
    "num_first_layers_in_bf16": 1,
    "num_last_layers_in_bf16": 2,
    "quantization_ignored_layer_kws": ["o_proj"],
    "pow2_weight_scaling_factors": True,
    "pow2_activation_scaling_factors": False,
    "is_mx": None,
}


def overridden(config):
    """A user's function of overrides: at module level, so that it can be pickled."""
    config.rope_theta = 7.0
    return config


def settings_of(kwargs):
    return kwargs["hf_overrides"]["quantization_config"]["settings"]


class Arguments(unittest.TestCase):
    def test_a_whole_vllm_cfg(self):
        before = copy.deepcopy(WHOLE)
        kwargs, _ = vllm_kwargs(WHOLE, MODEL)
        self.assertEqual(WHOLE, before)
        self.assertEqual(kwargs["quantization"], "fp8rt")
        self.assertEqual(kwargs["kv_cache_dtype"], "auto")
        config = kwargs["hf_overrides"]["quantization_config"]
        self.assertEqual(config["quant_method"], "fp8rt")
        self.assertEqual(config["weight_block_size"], [128, 128])
        self.assertNotIn("tensor_parallel_size", config["settings"])
        # The policy is the one that the library makes of the whole vllm_cfg.
        given = {key: value for key, value in WHOLE.items() if value is not None}
        self.assertEqual(Policy(config["settings"], MODEL).text, Policy(given, MODEL).text)

    def test_bf16_leaves_the_users_arguments(self):
        user = {"hf_overrides": {"rope_theta": 5.0}, "seed": 3}
        self.assertEqual(vllm_kwargs({"precision": "bfloat16"}, MODEL, user), (user, {}))

    def test_the_object_around_a_vllm_cfg(self):
        around = {"vllm_cfg": {"precision": "fp8"}, "vllm_kwargs": {"seed": 3, "hf_overrides": {"rope_theta": 5.0}}}
        kwargs, _ = vllm_kwargs(around, MODEL)
        self.assertEqual(kwargs["seed"], 3)
        self.assertEqual(kwargs["hf_overrides"]["rope_theta"], 5.0)
        self.assertEqual(settings_of(kwargs), {"precision": "fp8"})

    def test_what_is_wrong_is_said_here(self):
        for change, named in [
            ({"num_first_layers_in_bf16": 9}, "num_first_layers_in_bf16"),
            ({"is_mx": True}, "is_mx"),
            ({"kv_cache_dtype": "fp4"}, "kv_cache_dtype"),
            ({"use_deep_gemm": "yes"}, "use_deep_gemm"),
            ({"fp8rt": {"rule": []}}, "rule"),
        ]:
            with self.subTest(change), self.assertRaisesRegex((Fp8rtError, ValueError), named):
                vllm_kwargs({"precision": "fp8", **change}, MODEL)
        with self.assertRaisesRegex(ValueError, "kv_cache_dtype is 'fp8'.*precision"):
            vllm_kwargs({"precision": "bfloat16", "kv_cache_dtype": "fp8"}, MODEL)

    def test_a_slip_in_a_key_is_not_lost(self):
        with self.assertRaisesRegex((Fp8rtError, ValueError), "num_frst_layers_in_bf16"):
            vllm_kwargs({"precision": "fp8", "num_frst_layers_in_bf16": 1}, MODEL)

    def test_models_may_be_given_in_any_form(self):
        layers = {"precision": "fp8", "num_last_layers_in_bf16": 9}
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "config.json")
            file.write_text('{"num_hidden_layers": 8}')
            as_object = types.SimpleNamespace(to_json_string=lambda use_diff: file.read_text())
            for model in (MODEL, folder, file, as_object, types.SimpleNamespace(hf_config=as_object)):
                with self.subTest(model), self.assertRaisesRegex(Fp8rtError, "num_last_layers_in_bf16"):
                    vllm_kwargs(layers, model)
        for unknown in (None, "some/model"):
            vllm_kwargs(layers, unknown)

    def test_a_checkpoint_in_blocks(self):
        blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        kwargs, _ = vllm_kwargs({"precision": "fp8"}, MODEL | {"quantization_config": blocks})
        self.assertTrue(kwargs["hf_overrides"]["quantization_config"]["serialized"])


class Merged(unittest.TestCase):
    def merged(self, quantization_config, vllm_cfg=None):
        user = {"hf_overrides": {"rope_theta": 5.0, "quantization_config": quantization_config}}
        before = copy.deepcopy(user)
        kwargs, _ = vllm_kwargs({"precision": "fp8", **(vllm_cfg or {})}, MODEL, user)
        self.assertEqual(user, before)
        self.assertEqual(kwargs["hf_overrides"]["rope_theta"], 5.0)
        return kwargs["hf_overrides"]["quantization_config"]

    def kept(self, config):
        policy = Policy(config["settings"], MODEL)
        names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(8)]
        return [layer for layer, name in enumerate(names) if not policy.decide(name, (256, 256)).fp8]

    def test_ignored_layers_and_settings_both_hold(self):
        for key in ("ignored_layers", "modules_to_not_convert", "ignore"):
            config = self.merged({key: ["model.layers.3.mlp.down_proj"]}, {"num_first_layers_in_bf16": 1})
            self.assertEqual(self.kept(config), [0, 3], key)

    def test_a_regular_expression_of_ignore(self):
        self.assertEqual(self.kept(self.merged({"ignore": [r"re:model\.layers\.[56]\."]})), [5, 6])

    def test_rules_of_both_hold(self):
        rule = {"name": "model.layers.2.mlp.down_proj", "decision": "keep"}
        own = {"fp8rt": {"rules": [{"name": "model.layers.4.mlp.down_proj", "decision": "keep"}]}}
        self.assertEqual(self.kept(self.merged({"fp8rt": {"rules": [rule]}}, own)), [2, 4])

    def test_the_name_of_vllms_method_is_no_contradiction(self):
        self.assertEqual(self.merged({"quant_method": "fp8", "weight_block_size": [128, 128]})["quant_method"], "fp8rt")

    def test_a_contradiction_is_named(self):
        for key, value in [("quant_method", "awq"), ("weight_block_size", [64, 64]), ("activation_scheme", "static")]:
            with self.subTest(key), self.assertRaisesRegex(ValueError, f"quantization_config.{key}"):
                self.merged({key: value})
        with self.assertRaisesRegex(ValueError, "fp8rt.default"):
            self.merged({"fp8rt": {"default": "keep"}}, {"fp8rt": {"default": "fp8"}})
        with self.assertRaisesRegex(ValueError, "quantization is 'awq'"):
            vllm_kwargs({"precision": "fp8"}, MODEL, {"quantization": "awq"})
        with self.assertRaisesRegex(ValueError, "kv_cache_dtype is 'fp8'"):
            vllm_kwargs({"precision": "fp8", "kv_cache_dtype": "auto"}, MODEL, {"kv_cache_dtype": "fp8"})

    def test_experts_run_in_triton(self):
        inner = {"kernel_config": {"moe_backend": "auto"}}
        for user in ({}, {"moe_backend": "auto"}, {"moe_backend": "Triton"}, inner):
            kwargs, _ = vllm_kwargs({"precision": "fp8"}, MODEL, user)
            self.assertEqual(kwargs["moe_backend"], "triton")
        for user, named in (
            ({"moe_backend": "flashinfer_cutlass"}, "moe_backend is 'flashinfer_cutlass'.*'triton'"),
            ({"kernel_config": {"moe_backend": "deep_gemm"}}, "kernel_config.moe_backend is 'deep_gemm'"),
            ({"kernel_config": types.SimpleNamespace(moe_backend="marlin")}, "kernel_config.moe_backend is 'marlin'"),
        ):
            with self.assertRaisesRegex(ValueError, named):
                vllm_kwargs({"precision": "fp8"}, MODEL, user)

    def test_a_function_of_overrides_runs_first(self):
        kwargs, _ = vllm_kwargs({"precision": "fp8"}, MODEL, {"hf_overrides": overridden})
        function = pickle.loads(pickle.dumps(kwargs["hf_overrides"]))
        self.assertIsInstance(function, OverridesAfter)
        config = function(types.SimpleNamespace(quantization_config=None))
        self.assertEqual(config.rope_theta, 7.0)
        self.assertEqual(config.quantization_config["quant_method"], "fp8rt")


class Environment(unittest.TestCase):
    def test_deep_gemm(self):
        both = ("VLLM_USE_DEEP_GEMM", "VLLM_MOE_USE_DEEP_GEMM")
        for value, expected in [(False, "0"), (True, "1"), (None, None)]:
            for cfg in ({"use_deep_gemm": value}, {"fp8rt": {} if value is None else {"use_deep_gemm": value}}):
                _, environment = vllm_kwargs({"precision": "fp8", **cfg}, MODEL)
                self.assertEqual([environment.get(name) for name in both], [expected] * 2, cfg)
                self.assertEqual(environment["VLLM_USE_DEEP_GEMM_E8M0"], "0")

    def test_power_of_two_activations_of_experts(self):
        for cfg, expected in (
            ({"pow2_activation_scaling_factors": True}, "1"),
            ({"use_activation_pow2_scale": True}, "1"),
            ({"fp8rt": {"activation": {"scale_format": "pow2"}}}, "1"),
            ({"pow2_activation_scaling_factors": False}, "0"),
            ({"pow2_weight_scaling_factors": True}, "0"),
        ):
            _, environment = vllm_kwargs({"precision": "fp8", **cfg}, MODEL)
            self.assertEqual(environment["VLLM_USE_DEEP_GEMM_E8M0"], expected, cfg)

    def test_filters_let_the_plugin_through(self):
        with mock.patch.dict(os.environ, {"VLLM_PLUGINS": "lora_resolver", PREFIXES: "MINE_"}):
            _, environment = vllm_kwargs({"precision": "fp8"}, MODEL)
        self.assertEqual(environment["VLLM_PLUGINS"], "lora_resolver,fp8rt")
        self.assertEqual(environment[PREFIXES], "MINE_,FP8RT_")
        with mock.patch.dict(os.environ):
            os.environ.pop("VLLM_PLUGINS", None)
            self.assertNotIn("VLLM_PLUGINS", vllm_kwargs({"precision": "fp8"}, MODEL)[1])


class Imports(unittest.TestCase):
    def test_neither_torch_nor_vllm_is_imported(self):
        script = """
import sys
sys.modules["torch"] = sys.modules["vllm"] = None
import fp8rt_vllm
fp8rt_vllm.vllm_kwargs({"precision": "fp8"})
"""
        subprocess.run([sys.executable, "-c", script], check=True)


if __name__ == "__main__":
    unittest.main()
