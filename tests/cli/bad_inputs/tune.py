"""``randbp tune``: what cannot be used is said before anything is measured, and what was measured is never lost."""

from .rows import Command

TUNE = ("tune", "--config=good.yaml", "--rounds=0", "--draws=2")
SHARE = "expected a share of the exact layers' cost in (0, 1]"
WRITE = "expected a file to write"


def row(name: str, *options: str, says: tuple[str, ...], code: int = 2) -> Command:
    """A wrong option: nothing is measured, so nothing but the one line is printed."""

    def only_the_line(printed: str) -> None:
        assert len(printed.splitlines()) == 1

    return Command(name, (*TUNE, *options), code=code, says=says, check=only_the_line)


def cheapest_is_shown(printed: str) -> None:
    assert "features.0" in printed and "Rounding" in printed


ROWS = [
    row("tune --budget=0", "--budget=0", says=("--budget=0.0", SHARE)),
    row("tune --budget=-1", "--budget=-1", says=("--budget=-1.0", SHARE)),
    row("tune --budget=2", "--budget=2", says=("--budget=2.0", SHARE)),
    row("tune --budget=nan", "--budget=nan", says=("--budget=nan", SHARE)),
    row("tune --budget=inf", "--budget=inf", says=("--budget=inf", SHARE)),
    row("tune --budget=abc", "--budget=abc", says=("--budget", "invalid float value: 'abc'")),
    row("tune --budget=", "--budget=", says=("--budget", "invalid float value: ''")),
    row("tune --objective=speed", "--objective=speed", says=("--objective", "'speed'", "'memory', 'time'")),
    row("tune --batches=0", "--batches=0", says=("--batches=0: expected at least 1",)),
    row("tune --batches=x", "--batches=x", says=("--batches", "invalid int value: 'x'")),
    row("tune --draws=0", "--draws=0", says=("--draws=0: expected at least 2",)),
    row("tune --draws=1.5", "--draws=1.5", says=("--draws", "invalid int value: '1.5'")),
    row("tune no timings", "--objective=time", says=("--rounds=0: expected at least 1",)),
    row("tune --rounds=-1", "--rounds=-1", says=("--rounds=-1: expected at least 0",)),
    row("tune --output=/proc/x/t.yaml", "--output=/proc/x/t.yaml", says=("--output=/proc/x/t.yaml", WRITE)),
    row("tune --output=/proc/t.yaml", "--output=/proc/t.yaml", says=("--output=/proc/t.yaml", WRITE)),
    row("tune --output=.", "--output=.", says=("--output=.: Is a directory", WRITE)),
    row("tune --output=good.yaml", "--output=good.yaml", says=("--output=good.yaml: this file exists", "--overwrite")),
    row(
        "tune --output=good.yaml/x.yaml --overwrite",
        "--output=good.yaml/x.yaml",
        "--overwrite",
        says=("--output=good.yaml/x.yaml: Not a directory", WRITE),
    ),
    row("tune --output too long", f"--output={'a' * 300}", says=("File name too long", WRITE)),
    row(
        "tune --tensor_dropout.layers=nope",
        "--tensor_dropout.layers=nope",
        says=("layers='nope': matches none of the convolutions 'features.0', 'features.3', 'features.7'",),
    ),
    row("tune unknown option", "--budgt=0.5", says=("no option --budgt=0.5",)),
    row("tune config missing", "--config=none.yaml", says=("none.yaml",)),
    row("tune model raises", "--model=mine.Raises", says=("my own bug",), code=1),
    row("tune no data", "--data=mine.Empty", says=("the training data has no batch",), code=1),
    Command(
        "tune budget out of reach",
        (*TUNE, "--budget=0.0001"),
        says=("--budget=0.0001: the candidates reach",),
        check=cheapest_is_shown,
    ),
    Command(
        "tune --output in a new folder",
        (*TUNE, "--output=new/folder/tuned.yaml"),
        code=0,
        says=("features.3", "written to new/folder/tuned.yaml"),
        leaves=("new/folder/tuned.yaml",),
    ),
]
