"""Presets: names for good settings of :func:`randbp.randomize`; and the values of omitted arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Literal

from ..estimators import Exact, IfFaster, Precision, Rounding, Spatial
from ..lean import Lean, check_lean
from ..text.near_words import nearest
from .per_layer import Estimators, check_estimators
from .selection import Layers

PresetName = Literal["exact", "memory", "time"]


class Unset(Enum):
    """The value of an omitted argument; ``None`` and ``False`` are ordinary values.

    Its only member is written ``unset`` in configuration files.
    """

    unset = "unset"


UNSET: Final = Unset.unset


@dataclass(frozen=True)
class Settings:
    """What :func:`randbp.randomize` does to a model: its arguments of these names, all with values."""

    weight_vjp: Estimators = Spatial(keep=0.25)  # noqa: RUF009 -- a frozen value
    input_vjp: Estimators = Exact()  # noqa: RUF009
    layers: Layers = None
    lean: Lean = False
    bits: int = 4
    parts: int = 4


PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        "exact": Settings(Exact(), lean="exact"),
        "memory": Settings(IfFaster(Precision(estimator=Rounding(bits=4))), IfFaster(Precision()), "*", lean=True),
        "time": Settings(IfFaster(Precision()), IfFaster(Precision()), "*"),
    }
)
"""``exact``: gradients bit for bit, and nothing held that they do not need. ``memory``: everything in 4 bits per entry,
multiplied in bfloat16 where that is faster. ``time``: each VJP as it measures fastest, by PyTorch's kernel, by a
contraction or in bfloat16; no sampler is among these, for the error is to stay below 0.02. Both measure when a layer
runs for the first time, so another process may decide otherwise."""


def settings(preset: object = None, **given: Any) -> Settings:
    """The given arguments of :func:`randbp.randomize`, completed by those of a preset.

    Of two that belong together one may be enough: ``bits`` are also those of the preset's :class:`randbp.Rounding`, and
    keys of ``weight_vjp`` or ``input_vjp`` say which layers unless ``layers`` does.

    Args:
        preset: A name, or ``None`` for the usual values.
        **given: Arguments; :data:`UNSET` where there is none.

    Raises:
        ValueError: If there is no such preset, or an argument is out of range.

    Example:
        >>> settings("exact", bits=2)
        Settings(weight_vjp=Exact(), input_vjp=Exact(), layers=None, lean='exact', bits=2, parts=4)
        >>> settings("memory", bits=2, input_vjp=Exact()).weight_vjp.estimator.estimator.bits
        2
        >>> settings("fast")
        Traceback (most recent call last):
        ValueError: preset='fast': expected 'exact', 'memory' or 'time'
    """
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise ValueError(f"preset={preset!r}: expected 'exact', 'memory' or 'time'{nearest(preset, PRESETS)}")
    known = {name: value for name, value in given.items() if value is not UNSET}
    asked = replace(Settings() if preset is None else PRESETS[preset], **known)
    check_estimators("weight_vjp", asked.weight_vjp)
    check_estimators("input_vjp", asked.input_vjp)
    check_lean(asked.lean, asked.bits, asked.parts)
    if "weight_vjp" not in known:
        asked = replace(asked, weight_vjp=_in_bits(asked.weight_vjp, asked.bits))
    if "layers" not in known and (isinstance(asked.weight_vjp, Mapping) or isinstance(asked.input_vjp, Mapping)):
        asked = replace(asked, layers=None)
    return asked


def _in_bits(estimator: Any, bits: int) -> Any:
    """Set the bits of :class:`randbp.Rounding` in an estimator, at any depth."""
    if isinstance(estimator, Rounding):
        return replace(estimator, bits=bits)
    inner = getattr(estimator, "estimator", None)
    return estimator if inner is None else replace(estimator, estimator=_in_bits(inner, bits))
