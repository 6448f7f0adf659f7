"""The structures and numbers of abi.py are those of fp8rt.h, as a C compiler sees them."""

import ctypes
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from fp8rt import abi

INCLUDE = pathlib.Path(__file__).parents[2] / "include"
NUMBERS = {
    "BF16": "FP8RT_DTYPE_BF16",
    "F16": "FP8RT_DTYPE_F16",
    "F32": "FP8RT_DTYPE_F32",
    "E4M3": "FP8RT_DTYPE_E4M3",
    "DESTINATION_PARTLY": "FP8RT_REFIT_DESTINATION_PARTLY",
    "REFIT_PARTIAL": "FP8RT_REFIT_PARTIAL",
    "REFIT_IDLE": "FP8RT_REFIT_STATE_IDLE",
    "REFIT_OPEN": "FP8RT_REFIT_STATE_OPEN",
    "REFIT_FAILED": "FP8RT_REFIT_STATE_FAILED",
}


def structures() -> list[type]:
    found = [value for value in vars(abi).values() if isinstance(value, type) and issubclass(value, ctypes.Structure)]
    return [value for value in found if value not in (ctypes.Structure, abi.Sized)]


def c_name(structure: type) -> str:
    """RefitDesc is fp8rt_refit_desc."""
    return "fp8rt" + re.sub(r"[A-Z]", lambda letter: f"_{letter.group().lower()}", structure.__name__)


def numbers() -> dict[str, int]:
    backends = {f"FP8RT_BACKEND_{name.upper()}": number for name, number in abi.BACKENDS.items()}
    recipes = {f"FP8RT_RECIPE_{name}": number for number, name in enumerate(abi.RECIPES)}
    formats = {f"FP8RT_SCALE_FORMAT_{name}": number for number, name in enumerate(abi.SCALE_FORMATS)}
    return {c: getattr(abi, python) for python, c in NUMBERS.items()} | backends | recipes | formats


def as_python_sees_them() -> list[str]:
    lines = []
    for structure in structures():
        lines.append(f"{c_name(structure)} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            lines.append(f"{c_name(structure)}.{field} {place.offset} {place.size}")
    return lines + [f"{name} {number}" for name, number in numbers().items()]


def program() -> str:
    """Prints the same lines from the header."""
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <fp8rt.h>", "int main(void) {"]
    for structure in structures():
        name = c_name(structure)
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, *_ in structure._fields_:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            )
    lines += [f'printf("{name} %d\\n", (int){name});' for name in numbers()]
    return "\n".join([*lines, "return 0;", "}", ""])


class AbiTest(unittest.TestCase):
    def test_sizes_offsets_and_numbers(self):
        compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
        with tempfile.TemporaryDirectory() as folder:
            source, binary = pathlib.Path(folder, "layout.c"), pathlib.Path(folder, "layout")
            source.write_text(program())
            subprocess.run([compiler, f"-I{INCLUDE}", str(source), "-o", str(binary)], check=True)
            said = subprocess.run([str(binary)], check=True, stdout=subprocess.PIPE, text=True).stdout
        self.assertEqual(said.splitlines(), as_python_sees_them())
        self.assertGreater(len(structures()), 10)


if __name__ == "__main__":
    unittest.main()
