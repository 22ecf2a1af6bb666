"""Module paths of release 0.1 that are gone: public names can be imported from them for one more release."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

GONE = {
    "randbp.diagnostics": "alive held memory peak report statistics",
    "randbp.estimators": "channels draw seeds",
    "randbp.lean": "install",
    "randbp.report": "runs",
    "randbp.tn": "layers operations.convolution operations.positions operations.transposed pattern plan plan_cache"
    " report spec",
    "randbp.tune": "assign",
}
"""The modules that are gone, by the package that exports their public names."""

_HOMES = {f"{home}.{name}": home for home, names in GONE.items() for name in names.split()}


class _Gone(ModuleType):
    """A module whose names are those of the package that exports them."""

    def __getattr__(self, name: str) -> Any:
        home = _HOMES[self.__name__]
        if name not in import_module(home).__all__:
            raise AttributeError(f"module {self.__name__!r} is gone, and {home!r} has no {name!r}")
        warnings.warn(f"{self.__name__} is gone: import {name} from {home}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(home), name)


class _Finder(Loader):
    """Finds and makes the modules that are gone; Python asks it after all other finders."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Finder()) if name in _HOMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Gone(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to be run."""


def find_what_is_gone() -> None:
    """Let Python find the modules that are gone."""
    sys.meta_path.append(_Finder)
