"""The example that refits a model, scaled down on the host: receipts, fingerprints, damage, reports, errors."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

SMALL = ("--layers", "4", "--scale-down", "16", "--threads", "2")
NAME = "model.layers.2.mlp.up_proj.weight"


class RefitModelTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = pathlib.Path(directory.name)

    def run_program(self, *arguments, code=0):
        command = [os.environ["REFIT_MODEL"], *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def receipt(self, *arguments, code=0):
        path = self.folder / "receipt.json"
        output = self.run_program(*SMALL, "--receipt", path, *arguments, code=code).stdout
        return json.loads(path.read_text(encoding="utf-8")), output

    def test_each_refit_fills_the_model_and_equals_the_trainers(self):
        receipt, output = self.receipt("--bucket-mib", "64")
        self.assertEqual(output.count(", as the trainer's"), 2)
        first, second = receipt["refits"]
        for refit in (first, second):
            # Six parameters a layer, embeddings, the last norm and the head.
            self.assertEqual(refit["entries"], 4 * 6 + 3)
            self.assertEqual(refit["tensors_and_cuts"], 4 * 9 + 3)
            self.assertEqual((refit["non_finite"], refit["different"]), (0, []))
            self.assertGreater(refit["milliseconds"], 0)
            # The last 128 rows of each: most bytes are those of the embeddings and the head.
            self.assertGreater(refit["bytes_compared"], 2 * 128 * 256 * 2)
            self.assertEqual(refit["different_bytes"], [])
        # New values have another fingerprint, in the same bytes.
        self.assertNotEqual(first["fingerprint"], second["fingerprint"])
        self.assertEqual(first["bytes_written"], second["bytes_written"])

    def test_cuts_on_blocks_fill_the_same(self):
        whole, _ = self.receipt("--bucket-mib", "64")
        cut, _ = self.receipt("--bucket-mib", "1")
        self.assertGreater(cut["refits"][0]["tensors_and_cuts"], whole["refits"][0]["tensors_and_cuts"])
        self.assertLess(cut["extra_bytes"], whole["extra_bytes"])
        for one, other in zip(cut["refits"], whole["refits"]):
            self.assertEqual(one["fingerprint"], other["fingerprint"])

    def test_settings_decide_what_is_fp8(self):
        settings = self.folder / "settings.json"
        receipts = {}
        for first in (0, 2):
            settings.write_text(json.dumps({"precision": "fp8", "num_first_layers_in_bf16": first}), encoding="utf-8")
            receipts[first], _ = self.receipt("--settings", settings)
        self.assertGreater(receipts[2]["model_bytes"], receipts[0]["model_bytes"])
        self.assertNotEqual(receipts[2]["policy"], receipts[0]["policy"])

    def test_a_flipped_bit_is_found_by_name(self):
        for name in (NAME, "lm_head.weight", "model.layers.1.self_attn.k_proj.weight"):
            receipt, output = self.receipt("--corrupt", name, code=1)
            self.assertEqual([refit["different"] for refit in receipt["refits"]], [[], [name]])
            self.assertIn(f"{name} is not what the trainer sent", output)

    def test_a_flipped_bit_in_the_last_rows_is_seen_in_the_engines_bytes(self):
        # Tensors of one block of rows, first in their parameter and not, quantized and kept.
        for name in (
            "model.layers.1.self_attn.k_proj.weight",
            "model.layers.2.self_attn.v_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.norm.weight",
        ):
            receipt, output = self.receipt("--corrupt", name, code=1)
            self.assertEqual([refit["different_bytes"] for refit in receipt["refits"]], [[], [name]])
            self.assertIn(f"the last rows of {name} are not", output)

    def test_every_scale_format(self):
        settings = self.folder / "settings.json"
        for scale_format in ("fp32", "pow2", "ue8m0_packed"):
            weight = {"scale_format": scale_format}
            settings.write_text(json.dumps({"fp8rt": {"default": "fp8", "weight": weight}}), encoding="utf-8")
            for scale_down in (8, 16):
                receipt, _ = self.receipt("--settings", settings, "--scale-down", scale_down, "--bucket-mib", "1")
                self.assertEqual([refit["different_bytes"] for refit in receipt["refits"]], [[], []])

    def test_a_refit_takes_no_memory_like_that_of_the_model(self):
        arguments = ("--layers", "4", "--scale-down", "4", "--threads", "2", "--bucket-mib", "64")
        path = self.folder / "receipt.json"
        self.run_program(*arguments, "--receipt", path)
        receipt = json.loads(path.read_text(encoding="utf-8"))
        self.assertLess(receipt["refits"][1]["memory_taken"], receipt["model_bytes"] / 20)

    def test_where_memory_is_short_the_model_is_scaled_down(self):
        path = self.folder / "receipt.json"
        limits = ("--layers", "2", "--bucket-mib", "8")
        done = self.run_program(*limits, "--memory-mib", "250", "--receipt", path)
        scale_down = json.loads(path.read_text(encoding="utf-8"))["scale_down"]
        self.assertIn(scale_down, (4, 8))
        self.assertIn(f"scaled down by {scale_down}", done.stdout)
        self.assertRegex(done.stderr, rf"memory is short of \d+ MB, 262 MB may be used: scaled down by {scale_down}")
        self.assertIn("fewer --layers", self.run_program(*limits, "--memory-mib", "64", code=1).stderr)

    def test_reports(self):
        for form in ("json", "txt", "html"):
            self.run_program(*SMALL, "--report", self.folder / f"report.{form}")
        report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        self.assertEqual([layer["kept"] for layer in report["layers"]], [True, False, False, True])
        self.assertEqual(report["suggestion"]["num_first_layers_in_bf16"], 1)
        # What one quantization costs of random values.
        self.assertAlmostEqual(report["total"]["relative_error"], 0.0264, delta=0.0005)
        self.assertIn("mlp.up_proj", (self.folder / "report.txt").read_text(encoding="utf-8"))
        page = (self.folder / "report.html").read_text(encoding="utf-8")
        self.assertIn("<svg", page)
        self.assertNotIn("http://", page.replace("http://www.w3.org/2000/svg", ""))

    def test_errors_say_what_is_wrong_and_leave_no_file(self):
        for arguments, words in (
            (("--corrupt", "no.such"), "no tensor is called no.such"),
            (("--settings", self.folder / "none.json"), "none.json: cannot be read"),
            (("--report", self.folder / "report.pdf"), "report.pdf: a report is .json, .txt or .html"),
            (("--receipt", self.folder / "none" / "receipt.json"), "receipt.json: cannot be written"),
        ):
            self.assertIn(words, self.run_program(*SMALL, *arguments, code=1).stderr)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_setting_that_is_mistyped_is_named(self):
        settings = self.folder / "settings.json"
        settings.write_text('{"precision": "fp8", "num_first_layer_in_bf16": 1}', encoding="utf-8")
        self.assertIn("num_first_layers_in_bf16", self.run_program(*SMALL, "--settings", settings, code=1).stderr)

    def test_options_that_are_none(self):
        for arguments, words in (
            (("--layers", "0"), "from 1 to 1000"),
            (("--scale-down", "3"), "a power of two"),
            (("--host-sources",), "needs a --device"),
            (("model",), "is no option"),
        ):
            self.assertIn(words, self.run_program(*arguments, code=2).stderr)


if __name__ == "__main__":
    unittest.main()
