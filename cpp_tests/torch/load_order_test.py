"""When the ops are registered: with torch before the library, after it, not at all, or too old. Each in a process of
its own, because a library stays loaded."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest

from support import LIBRARY

FAKES = os.environ.get("FP8RT_FAKE_LIBTORCH")
UNSUPPORTED = 12
BEGIN = """
import ctypes, sys
def library(path=sys.argv[1]):
    library = ctypes.CDLL(path)
    library.fp8rt_last_error.restype = ctypes.c_char_p
    return library
def says(library, text):
    message = library.fp8rt_last_error().decode()
    assert message.startswith("fp8rt_torch_register: ") and text in message, message
"""
USE = """
import torch
assert torch.ops.fp8rt.quantize_activation(torch.ones(2, 128))[1].shape == (2, 1)
"""


def run(code, *arguments, use=False, **environment):
    """The output of both streams of a fresh Python, which at last uses an op if `use` says so."""
    code = BEGIN + textwrap.dedent(code) + (USE if use else "")
    result = subprocess.run([sys.executable, "-c", code, LIBRARY, *map(str, arguments)],
                            env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(f"exit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result.stdout + result.stderr


class LoadOrder(unittest.TestCase):
    def test_torch_first(self):
        run("import torch; torch.ops.load_library(sys.argv[1])", use=True)
        run("import torch; library()", use=True)

    def test_library_first(self):
        run(f"""
            fp8rt = library()
            assert fp8rt.fp8rt_torch_register() == {UNSUPPORTED}
            says(fp8rt, "libtorch_cpu.so is not in this process: import torch before")
            import torch
            assert not hasattr(torch.ops.fp8rt, "linear")
            assert fp8rt.fp8rt_torch_register() == 0 and fp8rt.fp8rt_torch_register() == 0
            """, use=True)

    def test_no_torch(self):
        output = run("""
            library()
            maps = open("/proc/self/maps").read()
            assert "libtorch" not in maps and "libcuda" not in maps
            assert len(__import__("os").listdir("/proc/self/task")) == 1
            """, FP8RT_VERBOSE="1")
        self.assertEqual(output, "")

    def test_loading_with_torch_starts_no_thread(self):
        run("""
            import os, torch
            threads = len(os.listdir("/proc/self/task"))
            library()
            assert len(os.listdir("/proc/self/task")) == threads
            """)

    def test_a_second_copy_is_refused_and_the_first_goes_on(self):
        with tempfile.TemporaryDirectory() as directory:
            copy = pathlib.Path(directory) / "libfp8rt_copy.so"
            shutil.copy(LIBRARY, copy)
            output = run(f"""
                import torch
                torch.ops.load_library(sys.argv[1])
                second = library(sys.argv[2])
                assert second.fp8rt_torch_register() == {UNSUPPORTED}
                says(second, "has another copy of this library registered its ops?")
                """, copy, use=True, FP8RT_VERBOSE="1")
        self.assertIn("fp8rt: no ops for torch: torch did not let fp8rt::quantize_weight be defined", output)

    @unittest.skipUnless(FAKES, "FP8RT_FAKE_LIBTORCH names no directory")
    def test_what_torch_lacks_is_named(self):
        for name, text in (("old", "this torch is 2.10, 2.11 is needed"),
                           ("ancient", "this torch is older than 2.9, 2.11 is needed"),
                           ("bare", "libtorch_cpu.so of this process has no aoti_torch_check")):
            output = run(f"""
                ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
                fp8rt = library()
                assert fp8rt.fp8rt_torch_register() == {UNSUPPORTED}
                says(fp8rt, sys.argv[3])
                """, pathlib.Path(FAKES) / name / "libtorch_cpu.so", text, FP8RT_VERBOSE="1")
            self.assertEqual(output, f"fp8rt: no ops for torch: {text}\n")


if __name__ == "__main__":
    unittest.main()
