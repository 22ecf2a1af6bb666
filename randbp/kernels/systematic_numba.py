"""Systematic sampling by numba: see :mod:`.systematic`."""

import numpy as np
import torch
from torch import Tensor

from .jit import array, function
from .systematic import ROUNDS, SCALE, UNIT

_TINY = float(torch.finfo(torch.float32).tiny)


def systematic_rows(sizes, count, start) -> tuple[Tensor, Tensor]:
    """The same numbers and weights as the reference's."""
    rows, weights = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.float64)
    _draw(array(sizes), start, np.empty(len(sizes), np.int64), rows.numpy(), weights.numpy())
    return rows, weights


@function
def _draw(sizes, start, integers, rows, weights):
    count, size, wild = len(rows), len(sizes), 0
    top = _TINY
    for i in range(size):
        if np.isfinite(sizes[i]):
            top = max(top, np.float64(sizes[i]))
        else:
            wild += 1
    total, some = 0, 0
    for i in range(size):
        integers[i] = np.int64(np.ceil(np.float64(sizes[i]) / top * SCALE)) if np.isfinite(sizes[i]) else 0
        total += integers[i]
        some += integers[i] > 0
    more = total // max(1, some) // 10
    total += more * some
    for i in range(size):
        if integers[i] > 0:
            integers[i] += more
    # Terms that are drawn for sure are the largest: those from ``least`` on.
    rest, sure, least = total, wild, float(np.inf)
    for _ in range(ROUNDS):
        if rest == 0:
            break
        rate, before, found, gone = np.float64(count - sure) / np.float64(rest), least, 0, 0
        for i in range(size):
            if 0 < integers[i] < before and np.float64(integers[i]) * rate >= 1:
                found, gone = found + 1, gone + integers[i]
                if integers[i] < least:
                    least = float(integers[i])
        if found == 0:
            break
        sure, rest = sure + found, rest - gone
    rate = np.float64(max(0, count - sure)) / np.float64(max(1, rest))
    end, number = 0, 0
    for i in range(size):
        if integers[i] >= least or not np.isfinite(sizes[i]):
            chance = UNIT
        else:
            chance = min(UNIT, int(integers[i] * rate * UNIT))
        end += chance
        while number < count and number * UNIT + start < end:
            rows[number], weights[number] = i, UNIT / np.float64(chance)
            number += 1
    for rest_number in range(number, count):
        rows[rest_number], weights[rest_number] = max(0, size - 1), 0
