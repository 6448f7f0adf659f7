"""Builds libfp8rt.so with cargo and packs it: one wheel for every CPython of this machine's kind.

FP8RT_FEATURES: cargo features, by default "cuda,cutlass"; empty for the host alone. FP8RT_LIBRARY: a library that is built
already, which is packed as it is.
"""
import os
import pathlib
import platform
import shutil
import subprocess

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build_library() -> pathlib.Path:
    given = os.environ.get("FP8RT_LIBRARY")
    if given:
        return pathlib.Path(given)
    features = os.environ.get("FP8RT_FEATURES", "cuda,cutlass")
    target = ROOT / "target" / ("cuda" if features else "")
    command = ["cargo", "build", "--release", "--locked", "--lib", "--target-dir", str(target)]
    if features:
        subprocess.check_call(["make", "gpu-tools"], cwd=ROOT)
        command += ["--features", features]
    subprocess.check_call(command, cwd=ROOT)
    return target / "release" / "libfp8rt.so"


class BuildPy(build_py):
    def run(self):
        super().run()
        package = pathlib.Path(self.build_lib) / "fp8rt_vllm"
        shutil.copyfile(build_library(), package / "libfp8rt.so.0")
        shutil.copyfile(ROOT / "include" / "fp8rt.h", package / "fp8rt.h")


class Binary(Distribution):
    def has_ext_modules(self):
        return True


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", f"linux_{platform.machine()}"


setup(distclass=Binary, cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel})
