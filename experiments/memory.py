"""Bytes of a training step: presets and estimators beside checkpoints, bf16 and micro-batches, over networks.

``python -m experiments memory`` counts, for each network of ``python -m bench lean``, what the forward pass leaves for
backward and the peak of forward and backward pass, both without parameters and their gradients, and the error of the
gradient. Counts are exact, and the same on a busy machine. Rows that are written already are not measured again.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import BLACK, BLUE, GREEN, ORANGE, PINK, panels, ticks
from bench.lean import measure
from bench.lean_settings import NETWORKS, SETTINGS
from bench.place import Place
from experiments.pages import table, write_pages
from experiments.runs_once import Row, runs_once

QUICK = ("all-cnn-c", "convnext-base")
COLOURS = dict(zip(NETWORKS, (BLUE, GREEN, ORANGE, PINK, BLACK), strict=True))
EAGER = tuple(name for name, setting in SETTINGS.items() if setting.compiled is None and "hooks" not in name)


def main(argv: Sequence[str]) -> int:
    """Count what is missing, and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m experiments memory", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} alone, a quarter of their images")
    parser.add_argument("--output", type=Path, default=Path("runs/memory"), help="folder (default: runs/memory)")
    options = parser.parse_args(argv)
    names = list(QUICK) if options.quick else options.networks
    wanted = [{"network": name, "quick": options.quick, "settings": list(EAGER)} for name in names]
    rows = runs_once(
        options.output / "memory.jsonl", wanted, _measured, lambda row: f"{row['run']['network']}: counted"
    )
    figure(options.output, rows)
    blocks = [
        "Bytes over those of the exact step: what the forward pass leaves for backward, and the peak of both passes, "
        "parameters and their gradients apart. Error: of all gradients, one draw, over the exact gradient's norm.",
        "![Two panels: for each setting one dot per network shows held bytes and peak over exact](memory.png)",
        *(_table(row["rows"]) for row in rows),
    ]
    command = "memory" + (" --quick" if options.quick else "")
    for line in [*blocks[2:], *write_pages(options.output / "memory.md", "Memory", command, {}, blocks)]:
        print(line)
    return 0


def _measured(run: Mapping[str, Any]) -> Row:
    name = run["network"]
    settings = {title: SETTINGS[title] for title in run["settings"]}
    return {"rows": measure(name, NETWORKS[name], 0, run["quick"], settings, Place())}


def _table(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [
        [row["setting"], f"{row['held'] / 1e6:.1f}", f"{row['held_ratio']:.3f}", f"{row['peak_ratio']:.3f}",
         f"{row['error']:.2g}"]
        for row in rows
    ]  # fmt: skip
    title = f"**{first['network']}**, {first['batch']} images of {NETWORKS[first['network']].size}²"
    return f"{title}\n\n{table(['setting', 'held, MB', 'over exact', 'peak over exact', 'error'], lines)}"


def figure(folder: Path, rows: Sequence[Row]) -> None:
    """Held bytes and peaks of all settings, one colour per network."""
    with panels("memory", 2, (8.2, 4.2), [], folder) as (drawn, axes):
        for panel, key, title in zip(axes, ("held_ratio", "peak_ratio"), ("held for backward", "peak"), strict=True):
            for row in rows:
                found = row["rows"]
                places = range(len(found), 0, -1)
                panel.plot(
                    [each[key] for each in found], places, "o", color=COLOURS[row["run"]["network"]],
                    markersize=5.5, alpha=0.85, label=row["run"]["network"] if key == "held_ratio" else None,
                )  # fmt: skip
            panel.axvline(1, color="#888888", linewidth=0.9, linestyle="--")
            panel.set_xscale("log")
            panel.set_xlim(right=1.5)
            ticks(panel.xaxis, [2.0**-power for power in range(0, 6)], fractions=True)
            panel.set_xlabel(f"bytes over exact, {title}")
            panel.set_yticks(range(len(rows[0]["rows"]), 0, -1), [each["setting"] for each in rows[0]["rows"]])
        axes[1].tick_params(labelleft=False)
        drawn.legend(loc="outside lower center", ncols=len(rows))
