"""Damaged and hostile checkpoints: each gives a one-line error that names the file and the tensor, and no output."""

import os
import struct
import unittest

from model_files import ProgramTest, model_bytes, pack

GOOD = ("F32", [2, 2], struct.pack("<4f", 1, 2, 3, 4))
NAME = "layer.weight"


def entry(**changes):
    """The description of a 2x2 F32 tensor with fields changed, or left out where the change is None."""
    fields = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    return {key: value for key, value in fields.items() if value is not None}


class FileTest(ProgramTest):
    def expect_refusal(self, content, *words):
        path = self.write("model.safetensors", content)
        out = self.folder / "out" / "quantized.safetensors"
        out.parent.mkdir()
        self.expect_error("--out", out, path, words=["model.safetensors", *words])

    def expect_tensor_refusal(self, description, *words, data=bytes(16)):
        self.expect_refusal(pack({NAME: description}, data), f'tensor "{NAME}"', *words)

    def test_empty_file(self):
        self.expect_refusal(b"", "is empty")

    def test_shorter_than_the_length_field(self):
        self.expect_refusal(b"\x10\0\0", "is truncated: 3 bytes")

    def test_header_length_zero(self):
        self.expect_refusal(struct.pack("<Q", 0) + b"{}", "the header has length 0")

    def test_header_length_past_the_end(self):
        self.expect_refusal(struct.pack("<Q", 100) + b"{}", "length 100, past the end of the file of 10 bytes")

    def test_header_length_absurd(self):
        self.expect_refusal(struct.pack("<Q", 2**64 - 1) + b"{}", f"length {2**64 - 1}", "at most 100000000")

    def test_truncated_data(self):
        self.expect_refusal(model_bytes({NAME: GOOD})[:-1], NAME, "past the end", "holds 15 bytes")

    def test_data_after_the_last_tensor(self):
        self.expect_refusal(model_bytes({NAME: GOOD}) + b"x", "end at byte 16 of the data, which has 17")

    def test_header_not_json(self):
        self.expect_refusal(pack(b"\x80\x04pickle\n", b""), "is not JSON")

    def test_header_json_cut_short(self):
        self.expect_refusal(pack(b'{"layer.weight": {"dtype": "F3', b""), "is not JSON")

    def test_header_not_utf8(self):
        self.expect_refusal(pack(b'{"\xff\xfe": 1}', b""), "is not JSON")

    def test_header_not_an_object(self):
        for text in (b"[]", b"1", b'"text"', b"null"):
            with self.subTest(text=text):
                path = self.write("model.safetensors", pack(text, b""))
                self.expect_error(path, words=["model.safetensors", "is not a JSON object"])

    def test_header_nested_without_end(self):
        self.expect_refusal(pack(b"[" * 1_000_000, b""), "nested deeper than 64")

    def test_duplicate_tensor(self):
        text = b'{"layer.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"layer.weight":1}'
        self.expect_refusal(pack(text, b""), '"layer.weight" appears twice')

    def test_duplicate_field(self):
        text = b'{"layer.weight":{"dtype":"U8","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        self.expect_refusal(pack(text, b""), '"dtype" appears twice')

    def test_metadata_of_a_wrong_type(self):
        self.expect_refusal(pack({"__metadata__": []}, b""), "__metadata__ is not an object")

    def test_metadata_value_of_a_wrong_type(self):
        self.expect_refusal(pack({"__metadata__": {"format": 1}}, b""), '__metadata__ "format" is not a string')

    def test_tensor_not_an_object(self):
        self.expect_tensor_refusal([1], "is not described by an object")

    def test_missing_fields(self):
        for field in ("dtype", "shape", "data_offsets"):
            with self.subTest(field=field):
                path = self.write("model.safetensors", pack({NAME: entry(**{field: None})}, bytes(16)))
                self.expect_error(path, words=["model.safetensors", NAME, f"has no {field}"])

    def test_wrong_types(self):
        cases = [
            ({"dtype": 3}, "dtype is not a string"),
            ({"shape": "2x2"}, "shape is not a list"),
            ({"shape": [2, "2"]}, 'shape has "2"'),
            ({"shape": [2, 2.0]}, "shape has 2.0"),
            ({"shape": [2, None]}, "shape has null"),
            ({"shape": [True, 4]}, "shape has true"),
            ({"shape": [-2, -2]}, "shape has -2"),
            ({"shape": [10**30, 1]}, "shape has 1e+30"),
            ({"data_offsets": 16}, "data_offsets is not a list"),
            ({"data_offsets": [16]}, "data_offsets has 1 numbers"),
            ({"data_offsets": [0, 8, 16]}, "data_offsets has 3 numbers"),
            ({"data_offsets": [-16, 0]}, "data_offsets has -16"),
            ({"data_offsets": [0.5, 16]}, "data_offsets has 0.5"),
        ]
        for changes, words in cases:
            with self.subTest(changes=changes):
                path = self.write("model.safetensors", pack({NAME: entry(**changes)}, bytes(16)))
                self.expect_error(path, words=["model.safetensors", f'tensor "{NAME}"', words])

    def test_shape_overflow(self):
        for shape in ([2**32, 2**32], [2**62, 2], [2**63, 0], [2**40, 2**40, 2**40], [2**61]):
            with self.subTest(shape=shape):
                path = self.write("model.safetensors", pack({NAME: entry(shape=shape)}, bytes(16)))
                self.expect_error(path, words=["model.safetensors", NAME, "shape overflows 64 bits"])

    def test_unknown_dtype(self):
        self.expect_tensor_refusal(entry(dtype="F31"), 'unknown dtype "F31"')

    def test_half_a_byte(self):
        self.expect_tensor_refusal(entry(dtype="F4", shape=[3]), "12 bits are no whole number of bytes")

    def test_offsets_backwards(self):
        self.expect_tensor_refusal(entry(data_offsets=[16, 0]), "data_offsets go backwards, 16 to 0")

    def test_offsets_past_the_end(self):
        self.expect_tensor_refusal(entry(data_offsets=[0, 2**64 - 1]), "past the end", "holds 16 bytes")

    def test_size_mismatch(self):
        self.expect_tensor_refusal(entry(shape=[2, 3]), "need 24 bytes, data_offsets give 16")

    def test_overlap(self):
        header = {"a.weight": entry(), "b.weight": entry(data_offsets=[8, 24])}
        self.expect_refusal(pack(header, bytes(24)), 'tensor "b.weight" begins at byte 8', "overlaps")

    def test_two_tensors_at_one_place(self):
        self.expect_refusal(pack({"a.weight": entry(), "b.weight": entry()}, bytes(16)), "b.weight", "overlaps")

    def test_hole(self):
        header = {"a.weight": entry(), "b.weight": entry(data_offsets=[20, 36])}
        self.expect_refusal(pack(header, bytes(36)), "b.weight", "begins at byte 20, a hole after byte 16")

    def test_hole_at_the_start(self):
        self.expect_tensor_refusal(entry(data_offsets=[4, 20]), "a hole after byte 0", data=bytes(20))

    def test_control_characters_in_a_name_do_not_reach_the_terminal(self):
        path = self.write("model.safetensors", pack({"a\n\x1b[2J\x9b": entry(dtype="F31")}, bytes(16)))
        result = self.expect_error(path, words=["a??[2J?", "unknown dtype"])
        self.assertNotIn("\x1b", result.stderr)

    def test_long_name_is_cut_between_characters(self):
        path = self.write("model.safetensors", pack({"x" + "\u00fc" * 500: entry(dtype="F31")}, bytes(16)))
        result = self.expect_error(path, words=["\u00fc...", "unknown dtype"])
        self.assertLess(len(result.stderr), 500)

    def test_number_too_large_for_json(self):
        self.expect_refusal(pack(b'{"layer.weight": 1e999}', b""), "is not JSON")

    def test_no_linear_weight(self):
        self.expect_refusal(model_bytes({"norm.weight": GOOD}), "no linear weight among 1 tensors")

    def test_scales_that_are_there_already(self):
        tensors = {NAME: GOOD, NAME + "_scale_inv": ("F32", [1, 1], bytes(4))}
        self.expect_refusal(model_bytes(tensors), f'has a tensor "{NAME}_scale_inv" already')

    def test_missing_file(self):
        self.expect_error(self.folder / "none.safetensors", words=["cannot open", "none.safetensors"])

    def test_not_a_regular_file(self):
        path = self.folder / "pipe.safetensors"
        os.mkfifo(path)
        self.expect_error(path, words=["pipe.safetensors is not a regular file"])


class FolderTest(ProgramTest):
    def expect_index_refusal(self, index, *words):
        self.write("model/model.safetensors.index.json", index)
        self.expect_error(self.folder / "model", words=["model.safetensors.index.json", *words])

    def setUp(self):
        super().setUp()
        self.write("model/one.safetensors", model_bytes({"a.weight": GOOD}))
        self.write("model/two.safetensors", model_bytes({"b.weight": GOOD}))

    def test_missing_shard(self):
        weights = {"a.weight": "one.safetensors", "b.weight": "three.safetensors"}
        self.expect_index_refusal({"weight_map": weights}, "shard three.safetensors does not exist")

    def test_tensor_that_the_shard_lacks(self):
        weights = {"a.weight": "one.safetensors", "b.weight": "two.safetensors", "c.weight": "two.safetensors"}
        self.expect_index_refusal({"weight_map": weights}, 'tensor "c.weight" is not in shard two.safetensors')

    def test_tensor_in_another_shard(self):
        weights = {"a.weight": "two.safetensors", "b.weight": "one.safetensors"}
        self.expect_index_refusal({"weight_map": weights}, 'tensor "a.weight" is not in shard two.safetensors')

    def test_tensor_that_the_index_lacks(self):
        self.write("model/two.safetensors", model_bytes({"b.weight": GOOD, "c.weight": GOOD}))
        weights = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
        self.expect_index_refusal({"weight_map": weights}, 'does not place tensor "c.weight" in shard two.safetensors')

    def test_shard_outside_the_folder(self):
        self.write("two.safetensors", model_bytes({"b.weight": GOOD}))
        for name in ("../two.safetensors", "/etc/passwd", "..", "", "a\0b"):
            with self.subTest(name=name):
                self.expect_index_refusal({"weight_map": {"b.weight": name}}, "b.weight", "is no plain file name")

    def test_index_of_a_wrong_type(self):
        cases = [
            (b"", "is empty"),
            (b"{", "is not JSON"),
            (b"[]", "is not a JSON object"),
            (b"{}", "has no object weight_map"),
            (b'{"weight_map": []}', "has no object weight_map"),
            (b'{"weight_map": {"a.weight": 1}}', 'tensor "a.weight" has no shard name'),
            (b'{"weight_map": {"a.weight": "one.safetensors", "a.weight": "two.safetensors"}}', "appears twice"),
        ]
        for content, words in cases:
            with self.subTest(content=content):
                self.expect_index_refusal(content, words)

    def test_tensor_in_two_files(self):
        self.write("model/two.safetensors", model_bytes({"a.weight": GOOD}))
        self.expect_error(self.folder / "model", words=["two.safetensors", '"a.weight" is also in', "one.safetensors"])

    def test_damaged_shard(self):
        self.write("model/two.safetensors", model_bytes({"b.weight": GOOD})[:-3])
        self.expect_error(self.folder / "model", words=["two.safetensors", "b.weight", "past the end"])

    def test_folder_without_a_model(self):
        (self.folder / "nothing").mkdir()
        self.expect_error(self.folder / "nothing", words=["nothing has no .safetensors file"])

    def test_good_folders(self):
        weights = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
        for index in (None, {"metadata": {"total_size": 32}, "weight_map": weights}):
            with self.subTest(index=index):
                if index is not None:
                    self.write("model/model.safetensors.index.json", index)
                result = self.run_program(self.folder / "model")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("\na.weight", result.stdout)
                self.assertIn("\nb.weight", result.stdout)
                self.assertIn("total: 2 tensors", result.stdout)


if __name__ == "__main__":
    unittest.main()
