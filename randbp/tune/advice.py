"""What fits into a memory, setting by setting, as a table and as a configuration file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan, nan
from pathlib import Path

from ..diagnostics.memory_rows import Row
from ..text.text_table import text_table
from ..text.units import format_bytes, ratio

PLAIN = "plain"
_NONE = "–"
_GENTLEST = (PLAIN, "exact", "memory")
"""Settings from the one that changes least; ``"time"`` is for speed and frees nothing."""


@dataclass(frozen=True)
class AdviceRow:
    """What one setting needs, and what it costs.

    Attributes:
        setting: ``"plain"`` for PyTorch's own step, or the name of a preset.
        unit_bytes: Bytes per example (per pixel, if images grow) at the largest size; NaN if nothing could be measured.
        largest: Largest batch (side of images) that fits; 0 if not even the smallest does.
        bytes: What a step of this size takes, everything included.
        time_ratio: Time of a step over that of the plain one, at the size ``compared``; NaN where not measured.
        noise: Error that the setting adds to the gradient, ``√E‖ĝ - g‖² / ‖g‖``; NaN where not measured.
        held_bytes: Bytes held for backward at the size ``compared``.
        held: Who holds most of them.
        measured_at: Size of the largest step whose bytes were measured. If it is about ``largest``, that was tried;
            else it is read off straight lines through smaller steps.
        given_bytes: What a step of the given size takes, everything included.
    """

    setting: str
    unit_bytes: float = nan
    largest: int = 0
    bytes: float = nan
    time_ratio: float = nan
    noise: float = nan
    held_bytes: int = 0
    held: tuple[Row, ...] = field(default=(), repr=False)
    measured_at: int = 0
    given_bytes: float = nan


@dataclass(frozen=True)
class Advice:
    """What fits into a memory. ``str()`` is a table, :meth:`yaml` writes what the command line takes.

    Attributes:
        rows: One for each setting: PyTorch's own step, and each preset.
        memory: The memory [bytes].
        fixed: Bytes that do not depend on the batch, by kind: parameters, buffers, gradients, optimiser state.
        given: Size of the given batch (side of its images).
        grows: ``"batch"``, or ``"side"`` if images grow.
        unit: What ``unit_bytes`` of the rows are per.
        compared: Size of the steps whose times and holders are compared.
        minibatch_noise: The gradient's own noise, ``‖g - E g‖ / ‖g‖``, in the same batch as the rows' noise; NaN where
            not measured.
        notes: What else there is to know, such as where memory is no straight line.
    """

    rows: tuple[AdviceRow, ...]
    memory: int
    fixed: Mapping[str, int]
    given: int
    grows: str = "batch"
    unit: str = "example"
    compared: int = 1
    minibatch_noise: float = nan
    notes: tuple[str, ...] = ()

    @cached_property
    def largest(self) -> dict[str, int]:
        """The largest batch (side) that fits, by setting."""
        return {row.setting: row.largest for row in self.rows}

    @property
    def fixed_bytes(self) -> int:
        """Bytes that do not depend on the batch."""
        return sum(self.fixed.values())

    @property
    def chosen(self) -> str:
        """The gentlest setting in which the given batch fits; if there is none, that of the largest batch."""
        found = [name for name in _GENTLEST if self.largest[name] >= self.given]
        return found[0] if found else max(_GENTLEST, key=lambda name: self.largest[name])

    def yaml(self, path: str | Path, setting: str | None = None) -> None:
        """Write the configuration of a setting, by default :attr:`chosen`, for ``randbp fit --config``.

        Raises:
            ValueError: If there is no such setting.
        """
        Path(path).write_text(self.configuration(setting), encoding="utf-8")

    def configuration(self, setting: str | None = None) -> str:
        """The text that :meth:`yaml` writes, with the table as a comment."""
        setting = self.chosen if setting is None else setting
        if setting not in self.largest:
            raise ValueError(f"setting={setting!r}: expected one of {', '.join(self.largest)}")
        comment = "\n".join(f"# {line}".rstrip() for line in ["Written by randbp advise.", "", *str(self).splitlines()])
        return f"{comment}\ntensor_dropout:\n  preset: {'null' if setting == PLAIN else setting}\n"

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in self.fixed.items() if size)
        head = f"{format_bytes(self.memory)}, of which {format_bytes(self.fixed_bytes)} are fixed: {kinds}"
        columns = ["setting", f"per {self.unit}", f"largest {self.grows}", "measured up to", "step time", "added noise"]
        table = zip(*(_cells(row) for row in self.rows), strict=True)
        seen = [
            (name, cells) for name, cells in zip(columns, table, strict=True) if any(cell != _NONE for cell in cells)
        ]
        names, shown = zip(*seen, strict=True)
        return "\n".join([head, "", text_table(names, list(zip(*shown, strict=True))), "", *self._below()])

    def _below(self) -> list[str]:
        lines = []
        if not isnan(self.minibatch_noise):
            lines.append(f"The minibatch's own noise is {self.minibatch_noise:.2g}.")
        fits = self.largest[self.chosen] >= self.given
        lines.append(
            f"{_named(self.chosen)} is the gentlest in which the given {self.grows} of {self.given} fits."
            if fits
            else f"The given {self.grows} of {self.given} fits in none; most fits with {_named(self.chosen)}."
        )
        lines += ["", "Most is held for backward by"]
        for row in self.rows:
            if row.held and row.setting in ("plain", "memory"):
                lines.append(f"  {_named(row.setting)}:")
                lines += [f"    {_share(one, row.held_bytes)}" for one in row.held]
        return [*lines, *self.notes]


def _cells(row: AdviceRow) -> list[str]:
    return [
        _named(row.setting),
        _NONE if isnan(row.unit_bytes) else format_bytes(row.unit_bytes),
        f"{row.largest:,}" if row.largest else "does not fit",
        f"{row.measured_at:,}" if row.measured_at else _NONE,
        _NONE if isnan(row.time_ratio) else ratio(row.time_ratio),
        _NONE if isnan(row.noise) else f"{row.noise:.3g}",
    ]


def _named(setting: str) -> str:
    return setting if setting == PLAIN else f'preset="{setting}"'


def _share(row: Row, total: int) -> str:
    why = f": {row.why}" if row.why else ""
    return f"{row.bytes / max(1, total):.0%} {row.module} {row.operation}{why}"
