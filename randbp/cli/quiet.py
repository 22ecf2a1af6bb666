"""What libraries say of themselves, or of what is meant to be so, is left out."""

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
    """Leave out what Lightning says of itself, unless failures are being looked for.

    Example:
        >>> quieten()
    """
    if not debugging():
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for message in _MEANT:
            warnings.filterwarnings("ignore", message=message)
