"""What --out writes, against the definition of the numbers; and what the program refuses to write."""

import json
import math
import os
import random
import resource
import signal
import struct
import subprocess
import time
import unittest

from definition import quantize, rounded
from model_files import PROGRAM, ProgramTest, model_bytes, read_model

SHAPES = [(130, 257), (1, 1), (128, 128), (257, 64), (3, 300)]


def bfloat16_bytes(values):
    """Cut to bfloat16, and the values that remain."""
    words = [struct.unpack("<I", struct.pack("<f", value))[0] >> 16 for value in values]
    kept = [struct.unpack("<f", struct.pack("<I", word << 16))[0] for word in words]
    return struct.pack(f"<{len(words)}H", *words), kept


def float16_bytes(values):
    data = struct.pack(f"<{len(values)}e", *values)
    return data, list(struct.unpack(f"<{len(values)}e", data))


def float32_bytes(values):
    data = struct.pack(f"<{len(values)}f", *values)
    return data, list(struct.unpack(f"<{len(values)}f", data))


ENCODERS = {"BF16": bfloat16_bytes, "F16": float16_bytes, "F32": float32_bytes}


def sample(count, seed):
    """Values of magnitudes that reach E4M3's subnormals and zero in one block."""
    generator = random.Random(seed)
    return [rounded(generator.gauss(0, 1) * 2.0 ** generator.randint(-20, 2)) for _ in range(count)]


def make_weights(shapes=SHAPES):
    """{name: (dtype, shape, bytes)} of linear weights, and {name: values}."""
    tensors, values = {}, {}
    for dtype, encode in ENCODERS.items():
        for rows, columns in shapes:
            name = f"layers.0.{dtype.lower()}_{rows}x{columns}.weight"
            data, values[name] = encode(sample(rows * columns, name))
            tensors[name] = (dtype, [rows, columns], data)
    return tensors, values


# None of these may be quantized, and none may change.
KEPT = {
    "model.embed_tokens.weight": ("BF16", [3, 2], bytes(range(12))),
    "model.layers.0.input_layernorm.weight": ("F16", [2, 1], b"\x01\x02\x03\x04"),
    "model.layers.0.mlp.gate.weight": ("BF16", [2, 2], bytes(range(8))),
    "model.norm.weight": ("F32", [1], b"abcd"),
    "lm_head.weight": ("F32", [1, 2], bytes(range(8))),
    "layers.0.odd.bias": ("BF16", [3], b"abcdef"),
    "layers.0.wide.weight": ("F64", [1, 2], bytes(range(16))),
    "layers.0.experts.weight": ("F32", [1, 1, 2], bytes(range(8))),
    "flags": ("BOOL", [3], b"\1\0\1"),
    "position_ids": ("I64", [1, 1], bytes(range(8))),
    "packed": ("F4", [2, 3], b"\1\2\3"),
    "empty.weight": ("F32", [0, 5], b""),
    "scalar": ("F32", [], b"wxyz"),
    "last": ("U8", [1], b"!"),
}


class OutputTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "out" / "quantized.safetensors"
        self.out.parent.mkdir()

    def names_beside(self):
        return sorted(os.listdir(self.out.parent))

    def run_to_out(self, model, *arguments):
        """Runs, and returns the new tensors, metadata and configuration."""
        result = self.run_program("--out", self.out, *arguments, model)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("read back, every bit is as written", result.stdout)
        self.assertEqual(self.names_beside(), ["config.json", "quantized.safetensors"])
        self.stdout = result.stdout
        return *read_model(self.out), json.loads((self.out.parent / "config.json").read_text())

    def expect_tensors(self, tensors, weights, values, kept, recipe="nemo_rl", pow2=False):
        """`tensors` are the codes and scales of `weights` by definition, and `kept` byte for byte."""
        expected = {name: (dtype, list(shape), content) for name, (dtype, shape, content) in kept.items()}
        for name, (_, shape, _) in weights.items():
            codes, scales = quantize(values[name], *shape, recipe, pow2)
            expected[name] = ("F8_E4M3", shape, codes)
            expected[name + "_scale_inv"] = ("F32", [math.ceil(extent / 128) for extent in shape], scales)
        self.assertEqual(sorted(tensors), sorted(expected))
        for name, tensor in expected.items():
            self.assertTrue(tensors[name] == tensor, name)


class NumbersTest(OutputTest):
    def test_every_recipe_at_every_alignment(self):
        """The data begins one byte later each time, so that tensors begin at every alignment."""
        weights, values = make_weights()
        cases = [("nemo_rl", False), ("deepgemm", False), ("vllm", False), ("te", False), ("nemo_rl", True)]
        for padding, (recipe, pow2) in enumerate(cases):
            with self.subTest(recipe=recipe, pow2=pow2):
                content = model_bytes({**weights, **KEPT}, {"format": "pt"}, b" " * padding)
                path = self.write("model.safetensors", content)
                options = ["--recipe", recipe] + ["--pow2"] * pow2
                tensors, metadata, config = self.run_to_out(path, *options)
                self.expect_tensors(tensors, weights, values, KEPT, recipe, pow2)
                self.assertEqual(metadata, {"format": "pt"})
                self.assertIn(f"kept:  {len(KEPT)} tensors", self.stdout)
                self.assertEqual(config["quantization_config"].get("scale_fmt"), "ue8m0" if pow2 else None)

    def test_values_that_are_not_finite(self):
        name = "layers.0.weight"
        data, values = float32_bytes([math.nan, -math.nan, math.inf, -math.inf, 1.0, -0.0])
        path = self.write("model.safetensors", model_bytes({name: ("F32", [2, 3], data)}))
        tensors, _, _ = self.run_to_out(path)
        # Scale from the finite 1.0, NaN for itself, infinities saturated.
        self.assertEqual(tensors[name][2], bytes([0x7F, 0x7F, 0x7E, 0xFE, 0x7E, 0x80]))
        self.assertEqual(tensors[name + "_scale_inv"][2], struct.pack("<f", rounded(1 / 448)))
        self.assertIn("4 elements are not finite", self.stdout)

    def test_errors_in_the_table(self):
        """Random values: the relative errors that FP8 has, whatever the dtype."""
        generator = random.Random(1)
        for dtype, encode in ENCODERS.items():
            with self.subTest(dtype=dtype):
                data, _ = encode([rounded(generator.gauss(0, 1)) for _ in range(200 * 300)])
                path = self.write("model.safetensors", model_bytes({"a.weight": (dtype, [200, 300], data)}))
                result = self.run_program(path, "--rows", "33", "--threads", "2")
                self.assertEqual(result.returncode, 0, result.stderr)
                row = next(line for line in result.stdout.splitlines() if line.startswith("a.weight"))
                _, shape, recipe, weight_error, linear_error, speed = row.split()
                self.assertEqual((shape, recipe), ("200x300", "nemo_rl"))
                self.assertAlmostEqual(float(weight_error), 0.0264, delta=0.001)
                self.assertAlmostEqual(float(linear_error), 0.0369, delta=0.003)
                self.assertGreater(float(speed), 0)

    def test_shards_become_one_file(self):
        weights, values = make_weights([(130, 257), (64, 64)])
        names = sorted(weights)
        self.write("model/one.safetensors", model_bytes({name: weights[name] for name in names[:3]}, {"a": "1"}))
        self.write("model/two.safetensors", model_bytes({**{name: weights[name] for name in names[3:]}, **KEPT}))
        shard_of = {name: "one.safetensors" for name in names[:3]}
        shard_of.update({name: "two.safetensors" for name in [*names[3:], *KEPT]})
        self.write("model/model.safetensors.index.json", {"weight_map": shard_of})
        tensors, metadata, _ = self.run_to_out(self.folder / "model")
        self.expect_tensors(tensors, weights, values, KEPT)
        self.assertEqual(metadata, {"a": "1"})


class SelectionTest(OutputTest):
    def quantized_of(self, names, *arguments):
        content = model_bytes({name: ("F32", [1, 1], struct.pack("<f", 1)) for name in names})
        tensors, _, config = self.run_to_out(self.write("model.safetensors", content), *arguments)
        quantized = {name for name in names if tensors[name][0] == "F8_E4M3"}
        kept = {name.rpartition(".")[0] for name in names if name not in quantized and name.endswith(".weight")}
        self.assertEqual(set(config["quantization_config"]["modules_to_not_convert"]), kept)
        return quantized

    def test_names(self):
        linear = {
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.experts.7.gate_proj.weight",
            "model.layers.0.normal.weight",
            "model.layers.10.self_attn.q_proj.weight",
            "gated.weight",
            "a.gate.proj.weight",
            "membed.weight",
        }
        kept = {
            "model.embed_tokens.weight",
            "embeddings.word_embeddings.weight",
            "embeddings.LayerNorm.weight",
            "transformer.wte.weight",
            "visual.patch_embed.proj.weight",
            "visual.blocks.0.mlp.fc1.weight",
            "layers.0.input_layernorm.weight",
            "layers.0.norm1.weight",
            "layers.0.q_norm.weight",
            "lm_head.weight",
            "layers.0.mlp.gate.weight",
            "layers.0.mlp.shared_expert_gate.weight",
            "layers.0.mlp.router.weight",
            "layers.0.weight_g",
            "weight",
        }
        self.assertEqual(self.quantized_of(linear | kept), linear)

    def test_filter(self):
        names = {"layers.1.a.weight", "layers.10.a.weight", "layers.1.b.weight", "norm.weight"}
        expected = {"layers.1.a.weight", "layers.1.b.weight"}
        self.assertEqual(self.quantized_of(names, "--filter", r"layers\.1\.|norm"), expected)


class ConfigTest(OutputTest):
    def setUp(self):
        super().setUp()
        self.write("model/model.safetensors", model_bytes({"a.weight": ("F32", [1, 1], bytes(4)), **KEPT}))

    def test_without_a_source(self):
        _, _, config = self.run_to_out(self.folder / "model")
        modules = config["quantization_config"].pop("modules_to_not_convert")
        self.assertEqual(
            config,
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "fmt": "e4m3",
                    "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128],
                }
            },
        )
        expected = [name.rpartition(".")[0] for name in sorted(KEPT) if len(KEPT[name][1]) == 2 and ".weight" in name]
        self.assertEqual(modules, expected)

    def test_other_keys_stay(self):
        source = {
            "model_type": "m",
            "eps": 1e-05,
            "nested": {"list": [1, None, "ü"]},
            "quantization_config": {"theirs": 1, "fmt": "e4m3", "modules_to_not_convert": ["mine", "lm_head"]},
        }
        self.write("model/config.json", source)
        for model in (self.folder / "model", self.folder / "model" / "model.safetensors"):
            with self.subTest(model=model):
                _, _, config = self.run_to_out(model)
                done = config.pop("quantization_config")
                self.assertEqual(config, {key: source[key] for key in ("model_type", "eps", "nested")})
                self.assertEqual((done["theirs"], done["quant_method"]), (1, "fp8"))
                self.assertEqual(done["modules_to_not_convert"][:2], ["mine", "lm_head"])
                self.assertEqual(done["modules_to_not_convert"].count("lm_head"), 1)

    def test_settings_that_contradict(self):
        for key, value in (("quant_method", "awq"), ("weight_block_size", [64, 64]), ("activation_scheme", "static")):
            with self.subTest(key=key):
                self.write("model/config.json", {"quantization_config": {key: value}})
                self.expect_error("--out", self.out, self.folder / "model", words=["config.json", "has " + key])

    def test_damaged_source(self):
        cases = [
            (b"{", "is not JSON"),
            (b"[]", "is not a JSON object"),
            (b'{"a": 1, "a": 2}', '"a" appears twice'),
            (b'{"quantization_config": 1}', "quantization_config is not an object"),
            (b'{"quantization_config": {"modules_to_not_convert": 1}}', "modules_to_not_convert is not a list"),
        ]
        for content, words in cases:
            with self.subTest(content=content):
                self.write("model/config.json", content)
                self.expect_error("--out", self.out, self.folder / "model", words=["config.json", words])


class RefusalTest(OutputTest):
    def setUp(self):
        super().setUp()
        self.content = model_bytes({"a.weight": ("F32", [1, 1], bytes(4))})
        self.model = self.write("model/model.safetensors", self.content)

    def test_input_as_output(self):
        alias = self.folder / "alias.safetensors"
        alias.symlink_to(self.model)
        hard = self.folder / "hard.safetensors"
        os.link(self.model, hard)
        for out in (self.model, self.folder / "model" / ".." / "model" / "model.safetensors", alias, hard):
            with self.subTest(out=out):
                self.expect_error("--out", out, self.model, words=["will not replace", "a file of the input"])
        self.assertEqual(self.model.read_bytes(), self.content)

    def test_config_of_the_input(self):
        config = self.write("model/config.json", {"quantization_config": {}})
        out = self.folder / "model" / "other.safetensors"
        self.expect_error("--out", out, self.model, words=["will not replace", "config.json, a file of the input"])
        self.assertEqual(json.loads(config.read_text()), {"quantization_config": {}})

    def test_config_of_something_else(self):
        config = self.write("out/config.json", {"mine": 1})
        self.expect_error("--out", self.out, self.model, words=["config.json, which has no quantization_config"])
        self.assertEqual(json.loads(config.read_text()), {"mine": 1})

    def test_output_again(self):
        first = self.run_to_out(self.model)
        self.assertEqual(self.run_to_out(self.model), first)

    def test_no_folder(self):
        out = self.folder / "none" / "quantized.safetensors"
        self.expect_error("--out", out, self.model, words=["cannot create", "No such file or directory"])

    def test_output_name_is_a_folder(self):
        self.out.mkdir()
        self.expect_error("--out", self.out, self.model, words=["cannot create", "quantized.safetensors"])

    def test_full_disk(self):
        """A limit on the size of files stands for it."""
        values = bytes(4 * 512 * 512)
        self.write("model/model.safetensors", model_bytes({"a.weight": ("F32", [512, 512], values)}))

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        result = self.run_program("--out", self.out, self.model, preexec_fn=limit)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write", result.stderr)
        self.assertIn("File too large", result.stderr)
        self.assertEqual(self.names_beside(), [])

    def test_signals_leave_nothing(self):
        tensors = {f"{index}.weight": ("F32", [128, 128], bytes(4 * 128 * 128)) for index in range(200)}
        self.write("model/model.safetensors", model_bytes(tensors))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number=number):
                command = [PROGRAM, "--rows", "65536", "--out", str(self.out), str(self.model)]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                deadline = time.monotonic() + 60
                while len(self.names_beside()) < 2 and time.monotonic() < deadline:
                    time.sleep(0.005)
                self.assertEqual(len(self.names_beside()), 2)
                process.send_signal(number)
                self.assertEqual(process.wait(60), -number)
                self.assertEqual(self.names_beside(), [])

    def test_closed_standard_output(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            result = subprocess.run([PROGRAM, self.model], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write to standard output", result.stderr)


class CommandLineTest(OutputTest):
    def test_help(self):
        result = self.run_program("--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for word in ("--recipe", "--out", "--library", "lm_head", "mlp.gate.weight"):
            self.assertIn(word, result.stdout)

    def test_mistakes(self):
        cases = [
            ([], "needs one MODEL, got 0"),
            (["a", "b"], "needs one MODEL, got 2"),
            (["--rows", "0", "a"], '--rows is "0"'),
            (["--rows", "16x", "a"], '--rows is "16x"'),
            (["--threads", "-1", "a"], '--threads is "-1"'),
            (["--recipe", "none", "a"], '--recipe is "none"'),
            (["--out", "a.bin", "a"], "must end in .safetensors"),
            (["--out", "a.safetensors", "--recipe", "all", "a"], "takes one recipe"),
            (["--unknown", "a"], "--unknown"),
        ]
        for arguments, words in cases:
            with self.subTest(arguments=arguments):
                self.expect_error(*arguments, words=[words], code=2)

    def test_every_recipe_at_once(self):
        values, _ = float32_bytes(sample(200 * 200, 3))
        path = self.write("model.safetensors", model_bytes({"a.weight": ("F32", [200, 200], values)}))
        result = self.run_program("--recipe", "all", path)
        self.assertEqual(result.returncode, 0, result.stderr)
        recipes = [line.split()[2] for line in result.stdout.splitlines() if line.startswith("a.weight")]
        self.assertEqual(sorted(recipes), ["deepgemm", "nemo_rl", "te", "vllm"])

    def test_bad_filter(self):
        path = self.write("model.safetensors", model_bytes({"a.weight": ("F32", [1, 1], bytes(4))}))
        self.expect_error("--filter", "[", path, words=['--filter is "["'])
        self.expect_error("--filter", "zzz", path, words=["no linear weight matches --filter among 1 tensors"])

    def test_bad_library(self):
        path = self.write("model.safetensors", model_bytes({"a.weight": ("F32", [1, 1], bytes(4))}))
        self.expect_error("--library", "/none.so", path, words=["cannot open the library /none.so"])
        self.expect_error("--library", "libc.so.6", path, words=["libc.so.6 has no function fp8rt_abi_version"])


if __name__ == "__main__":
    unittest.main()
