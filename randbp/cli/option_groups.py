"""The order in which ``fit --help`` shows its options: randbp's own first, the Trainer's last."""

from argparse import ArgumentParser

TITLES = {
    "": "run",
    "tensor_dropout": "tensor dropout: exact backpropagation unless an estimator or a preset is given",
    "model": "model, a LightningModule of yours",
    "data": "data, a LightningDataModule of yours",
    "optimizer": "optimizer, where the model has none of its own",
    "lr_scheduler": "learning rate schedule, where the model has none of its own",
    "command": "checkpoint",
    "trainer": "Lightning's Trainer",
}
"""What the groups are called, in their order, by the first part of their options' names."""


def arrange(parser: ArgumentParser, command: str) -> None:
    """Put a command's groups of options in that order, under short titles, with a usage of one line."""
    order = list(TITLES)
    groups = {}
    for group in parser._action_groups:
        options = [action.dest for action in group._group_actions]
        key = options[0].partition(".")[0] if options else ""
        key = "" if key == "help" else key if key in TITLES else "command"
        if options:
            group.title = TITLES[key]
            group.description = None
            groups[key] = group
    parser._action_groups[:] = [groups[key] for key in order if key in groups]
    parser.usage = f"randbp {command} --config FILE [options]"
