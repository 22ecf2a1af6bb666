"""The command: costs of steps, trainings, then the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.runs_once import runs_once
from experiments.short_training import Row, all_runs, options_parser

from . import step_costs, trainings
from .optimizers import SETTINGS
from .page import CHOOSERS, best_settings, write_page

QUICK = {"width": 0.05, "steps": 10, "batch": 8, "test_images": 64, "seeds": 1}


def main(argv: Sequence[str]) -> int:
    """Measure and train what is missing, and write the page."""
    import experiments.second_order as command

    parser = options_parser("second-order", command.__doc__, steps=150, batch=128, seeds=7, test_images=2000)
    parser.set_defaults(output=Path("runs/second_order"))
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK} and short timings, to see that it works")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for timing each network's steps")
    parser.add_argument(
        *("--networks",), nargs="*", choices=step_costs.NETWORKS, default=list(step_costs.NETWORKS), metavar="NETWORK",
        help=f"whose steps are timed: {'; '.join(step_costs.NETWORKS)}",
    )  # fmt: skip
    options = vars(parser.parse_args(argv))
    quick, folder, networks, budget = (options.pop(name) for name in ("quick", "output", "networks", "budget"))
    if quick:
        options, budget = options | QUICK, 1.0
    seeds = options.pop("seeds")
    wanted: list[dict[str, Any]] = [{"network": name, "threads": torch.get_num_threads()} for name in networks]
    wanted.append({"first layer": 256 if not quick else 64, "threads": torch.get_num_threads()})
    costs = runs_once(folder / "steps.jsonl", wanted, lambda run: {"costs": _costs(run, budget)}, _told_costs)

    def trained(settings: Mapping[str, Any], seeds: int) -> list[Row]:
        return all_runs(settings, seeds, folder / "trainings.jsonl", options, trainings.run, _told)

    best = best_settings(trained(SETTINGS, min(seeds, CHOOSERS)))
    chosen = set(best.values())
    rows = [row for row in trained({name: SETTINGS[name] for name in best.values()}, seeds) if row["setting"] in chosen]
    for line in write_page(folder, options, costs, rows, best):
        print(line)
    return 0


def _costs(run: Mapping[str, Any], budget: float) -> dict[str, Any]:
    if size := run.get("first layer"):
        return step_costs.first_layer(32, size, budget / 10)
    return step_costs.measured(step_costs.NETWORKS[run["network"]], step_costs.OPTIMIZERS, budget)


def _told_costs(row: Row) -> str:
    return f"{row['run'].get('network', 'first layer of ConvNeXt-Base')}: measured"


def _told(row: Row) -> str:
    return f"accuracy {row['accuracy']:.4f}, loss {row['loss']:.3f}, {row['seconds']:.0f} s"
