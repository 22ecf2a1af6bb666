"""Offline runs of W&B: configuration, history and summary, from the file that W&B would upload."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .damaged import Damaged, reading

OFFLINE = "offline-run-*"
"""Folders of offline runs, in a folder ``wandb``."""

BLOCK, HEADER = 2**15, 7
WHOLE, LAST = 1, 4  # kinds of pieces that end a record


class WandbRun(NamedTuple):
    """Configuration, rows of the history, and last values."""

    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]


def read_wandb(path: Path) -> WandbRun:
    """Read a ``.wandb`` file; whatever is wrong with it raises :class:`Damaged`."""
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        raise Damaged(path, "needs W&B to be read (pip install wandb)") from None
    messages: Any = wandb_internal_pb2
    found = WandbRun({}, [], {})
    with reading(path, "W&B record"):
        for data in log_records(path.read_bytes()):
            record = messages.Record()
            try:
                record.ParseFromString(data)
            except Exception as error:  # protobuf's own, which has no types
                raise ValueError(error) from error
            found.config.update(_values([*record.run.config.update, *record.config.update]))
            found.summary.update(_values([*record.run.summary.update, *record.summary.update]))
            if record.WhichOneof("record_type") == "history":
                found.history.append(_values(record.history.item))
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after W&B's header of seven bytes; one that is cut short is left out.

    Blocks of 32 KiB hold pieces with checksum (4 bytes), length (2) and kind (1): whole, first, middle, last.
    """
    position, record = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # padding
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if position + HEADER + length > len(data):
            return
        record += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
