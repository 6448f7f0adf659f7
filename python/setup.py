"""Builds the wheel: the Python files, libfp8rt.so.0 and its headers. One wheel serves every CPython.

cargo builds the library with its CUDA kernels; FP8RT_LIBRARY names one that is built already, with kernels or without.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent.parent
BESIDE = ["include/fp8rt.h", "include/fp8rt_torch.hpp", "LICENSE", "NOTICE"]
# The oldest glibc that a manylinux tag of this form is used for.
OLDEST_GLIBC = 17


def toolkit() -> str | None:
    """The CUDA toolkit: named, fetched by `make gpu-tools`, or on the path."""
    nvcc = shutil.which("nvcc")
    candidates = [
        os.environ.get("CUDA_HOME"),
        str(ROOT / ".tools/cuda/nvidia/cu13"),
        nvcc and str(pathlib.Path(nvcc).resolve().parent.parent),
    ]
    return next((home for home in candidates if home and pathlib.Path(home, "bin/nvcc").exists()), None)


def build_library() -> pathlib.Path:
    if given := os.environ.get("FP8RT_LIBRARY"):
        return pathlib.Path(given)
    command = ["cargo", "build", "--release", "--locked", "--lib"]
    home, target = toolkit(), ROOT / "target/cuda"
    if home is None:
        # pip shows no warning, and a wheel without kernels would fail only where it is used.
        sys.exit("no CUDA toolkit: `make gpu-tools` fetches one, CUDA_HOME names one, FP8RT_LIBRARY a built library")
    command += ["--features", "cuda,cutlass", "--target-dir", str(target)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "CUDA_HOME": home}, check=True)
    return target / "release/libfp8rt.so"


def glibc(library: pathlib.Path) -> int:
    """The newest glibc 2.N that the library asks for, from the names of versions in it."""
    found = re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", library.read_bytes())
    return max([OLDEST_GLIBC, *map(int, found)])


def version() -> str:
    return re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)


class BuildPackage(build_py):
    def run(self) -> None:
        package = pathlib.Path(self.build_lib, "fp8rt")
        # What a build before left there would get into this wheel.
        for name in ("fp8rt", "fp8rt_vllm"):
            shutil.rmtree(pathlib.Path(self.build_lib, name), ignore_errors=True)
        super().run()
        shutil.copy(build_library(), package / "libfp8rt.so.0")
        for path in BESIDE:
            shutil.copy(ROOT / path, package)


class BuildWheel(bdist_wheel):
    """The wheel holds machine code, but none that knows a Python: no interpreter and no ABI in its tag."""

    def get_tag(self) -> tuple[str, str, str]:
        machine = os.uname().machine
        library = pathlib.Path(self.bdist_dir, "fp8rt/libfp8rt.so.0")
        return "py3", "none", f"manylinux_2_{glibc(library)}_{machine}"


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(version=version(), distclass=BinaryDistribution, cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel})
