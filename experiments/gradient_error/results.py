"""From single draws to the summary, and to whether the published finding holds."""

import csv
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import pandas as pd

from experiments.gradient_error.series import REFERENCE_CHANNELS, REFERENCE_SPATIAL

COLUMNS = ("data", "real", "draw", "estimator", "keep", "error", "held")


class DrawsFile:
    """A CSV file that is complete after every row, so that an interrupted run loses none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self.add(COLUMNS)

    def add(self, row: Iterable[object]) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def __enter__(self) -> "DrawsFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def fraction(keep: float) -> str:
    """A keep rate as ``3/4`` where it is a simple fraction."""
    simple = Fraction(keep).limit_denominator(64)
    return str(simple) if abs(simple - keep) < 1e-9 else f"{keep:g}"


def summarise(draws: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over draws by data, estimator and keep rate, in the order of the draws."""
    groups = draws.groupby(["data", "real", "estimator", "keep"], sort=False)
    summary = groups.agg(draws=("error", "size"), mean=("error", "mean"), std=("error", "std"), held=("held", "mean"))
    return summary.reset_index()


def finding(draws: pd.DataFrame) -> str:
    """One line: whether spatial beats channel sampling in the mean, at every keep rate, on real and synthetic data."""
    labels = [REFERENCE_SPATIAL.label, REFERENCE_CHANNELS.label]
    pairs = draws[draws["estimator"].isin(labels)].pivot_table(
        index=["real", "data", "keep", "draw"], columns="estimator", values="error"
    )
    pairs = pairs.reindex(columns=labels).dropna()
    means = pairs.groupby(level=["real", "data", "keep"]).mean()
    below = means[labels[0]] < means[labels[1]]
    everywhere = len(means) == draws["keep"].nunique() * draws["data"].nunique()
    decided = everywhere and set(draws["real"]) == {True, False}
    verdict = "HOLDS" if below.all() else "DOES NOT HOLD"
    parts = []
    for data in means.index.get_level_values("data").unique()[::-1]:  # real data first
        rows = means.xs(data, level="data").sort_index(level="keep", ascending=False)
        sign = {True: "<", False: "≥"}
        compared = [
            f"{fraction(keep)}: {spatial:.2f} {sign[bool(spatial < channels)]} {channels:.2f}"
            for (_, keep), spatial, channels in rows.itertuples(name=None)
        ]
        parts.append(f"{data}: " + ", ".join(compared))
    wins = int((pairs[labels[0]] < pairs[labels[1]]).sum())
    return (
        "Published finding, spatial below channel sampling at every keep rate on real and synthetic data: "
        f"{verdict if decided else 'NOT DECIDED, data missing'} "
        f"(mean error by keep rate, spatial against channels; {'; '.join(parts)}; "
        f"spatial is below in {wins} of {len(pairs)} single draws)"
    )
