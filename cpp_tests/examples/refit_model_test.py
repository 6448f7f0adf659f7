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
