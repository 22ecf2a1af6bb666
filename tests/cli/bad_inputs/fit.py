"""``randbp fit`` and its sisters."""

from .rows import Command

FIT = ("fit", "--config=good.yaml")

ROWS = [
    Command("config file missing", ("fit", "--config=none.yaml"), says=("config", "none.yaml")),
    Command("name ../x", (*FIT, "--name=../x"), says=("--name='../x'", "expected the name of a folder")),
    Command(
        "module raises",
        (*FIT, "--model=mine.Raises"),
        code=1,
        says=("my own bug", "traceback in runs/g/0/traceback.txt"),
        leaves=("runs/g/0",),
    ),
    Command("NaN loss", (*FIT, "--model=mine.NaNLoss"), code=0, says=("test_loss nan",), leaves=("runs/g/0",)),
]
