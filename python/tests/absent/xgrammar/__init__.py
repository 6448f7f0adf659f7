"""Stands in for a package that guided decoding alone uses: every name and module is there, and none does anything."""

import importlib.abc
import importlib.machinery
import sys


class _Absent:
    pass


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent


class _Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{__name__}."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = __getattr__


sys.meta_path.append(_Modules())
