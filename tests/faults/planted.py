"""Bugs planted on purpose, to see whether the simulation finds them: each a file in `bugs`, a change of source text.

A bug names a MODULE, the text OLD that stands in it exactly once, and NEW. It is planted when the module is imported,
so the tree itself is never touched; text that has moved on is an error here, not a bug that is silently not planted.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import pkgutil
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

from tests.faults import bugs


def names() -> list[str]:
    """All bugs there are."""
    return sorted(module.name for module in pkgutil.iter_modules(bugs.__path__))


def plant(name: str) -> None:
    """Make the next import of the bug's module import the bug with it. Before anything of the product is imported."""
    bug = importlib.import_module(f"tests.faults.bugs.{name}")
    if bug.MODULE in sys.modules:
        raise RuntimeError(f"{bug.MODULE} is already imported: plant {name} first")
    sys.meta_path.insert(0, _Planter(bug.MODULE, bug.OLD, bug.NEW))


def changed(source: str, name: str, old: str, new: str) -> str:
    """`source` with the bug in it. LookupError where `old` does not stand there exactly once."""
    if source.count(old) != 1:
        raise LookupError(f"{name}: the text to change stands there {source.count(old)} times; correct the planted bug")
    return source.replace(old, new)


class _Planter(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, old: str, new: str) -> None:
        self._module, self._old, self._new = module, old, new

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        spec.loader = _Changing(spec.loader, self._old, self._new)
        return spec


class _Changing(importlib.abc.InspectLoader):
    def __init__(self, inner: importlib.machinery.SourceFileLoader, old: str, new: str) -> None:
        self._inner, self._old, self._new = inner, old, new

    def get_source(self, name: str) -> str:
        return changed(self._inner.get_source(name) or "", name, self._old, self._new)

    def get_code(self, name: str) -> CodeType:
        return compile(self.get_source(name), f"<{name} with a bug>", "exec", dont_inherit=True)
