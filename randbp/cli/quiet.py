"""Suppression of libraries' messages about themselves or about intended behaviour."""

import logging
import warnings

from .errors import debugging

# Callbacks whose state a checkpoint has and evaluations do not need.
_OWN = r"'(RandomState|KeepRows|LatestEpoch)'"
_MEANT = [
    ".*LeafSpec.*",  # between Lightning and PyTorch
    rf".*add the following callbacks: \[{_OWN}(, {_OWN})*\]",
    "The dirpath has changed",  # where a run goes on in a folder of its own
    ".*exists and is not empty",  # where it goes on in its folder
    "Total length of .* is zero",  # which ends the run, and is then said
]


def quieten() -> None:
    """Suppress Lightning's messages about itself, except while debugging."""
    if not debugging():
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for message in _MEANT:
            warnings.filterwarnings("ignore", message=message)
