"""Safetensors files for the tests, good and bad, and the program under test. Standard library only."""

import json
import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

PROGRAM = os.environ["QUANTIZE_MODEL"]


def pack(header, data, padding=b""):
    """A file from a header (a dict, or raw bytes) and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += padding
    return struct.pack("<Q", len(text)) + text + data


def model_bytes(tensors, metadata=None, padding=b""):
    """A correct file from {name: (dtype, shape, bytes)}."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return pack(header, data, padding)


def read_model(path):
    """{name: (dtype, shape, bytes)} and the metadata. Checks what the format promises on the way."""
    content = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert length % 8 == 0, "the data is not 8-byte aligned"
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    tensors, reached = {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert begin == reached, "the header is not in the order of the data"
        reached = end
        tensors[name] = (entry["dtype"], entry["shape"], content[8 + length + begin : 8 + length + end])
    assert 8 + length + reached == len(content)
    return tensors, metadata


class ProgramTest(unittest.TestCase):
    """Each test has a folder of its own, `self.folder`."""

    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = pathlib.Path(holder.name)

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def run_program(self, *arguments, **options):
        command = [PROGRAM, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)

    def names(self):
        """Every file under the folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def expect_error(self, *arguments, words, code=1):
        """One line on stderr that has all `words`, the exit code, and no file more than before."""
        before = self.names()
        result = self.run_program(*arguments)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertEqual(self.names(), before)
        return result
