"""Numbers formatted for people."""

import re
from collections.abc import Sequence
from math import floor, isfinite, log10

BYTES = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
SECONDS = ((1e-6, "µs"), (1e-3, "ms"), (1, "s"))
PERCENT = ((0.01, "%"),)
Unit = tuple[float, str]


def pick_unit(value: float, units: Sequence[Unit]) -> Unit:
    """The largest unit in which a value is at least one; the smallest unit for tiny values.

    Example:
        >>> pick_unit(3 * 2**20, BYTES)
        (1048576, 'MiB')
    """
    return max((unit for unit in units if abs(value) >= unit[0]), default=units[0])


def format_bytes(count: float) -> str:
    """A number of bytes with a binary unit, to one decimal place.

    Example:
        >>> format_bytes(3 * 2**20), format_bytes(100)
        ('3.0 MiB', '100 B')
    """
    size, symbol = pick_unit(count, BYTES)
    return f"{count / size:.{size > 1:d}f} {symbol}"


_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?)(i?)b", re.IGNORECASE)


def parse_bytes(name: str, value: object) -> int:
    """A number of bytes, given as an integer or as text with a binary or decimal unit.

    Raises:
        ValueError: If it is neither, or less than one.

    Example:
        >>> parse_bytes("memory", "24GiB") == 24 * 2**30, parse_bytes("memory", "1.5 kB"), parse_bytes("memory", 100)
        (True, 1500, 100)
        >>> parse_bytes("memory", "24 gigs")
        Traceback (most recent call last):
        ValueError: memory='24 gigs': expected a positive number of bytes, or text such as '24GiB' or '24GB'
    """
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    count = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if found is not None:
        number, prefix, binary = found.groups()
        count = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    if count < 1:
        raise ValueError(
            f"{name}={value!r:.60}: expected a positive number of bytes, or text such as '24GiB' or '24GB'"
        )
    return count


def quantity(mean: float, std: float | None, units: Sequence[Unit]) -> str:
    """A value with three significant digits and its unit, and with its spread if that is visible at this precision.

    Example:
        >>> quantity(0.0123456, 0.0004, SECONDS), quantity(96 * 2**20, None, BYTES)
        ('12.3 ± 0.4 ms', '96.0 MiB')
        >>> quantity(float("nan"), None, BYTES), quantity(1e300, 1e299, BYTES)
        ('nan', '1e+300')
    """
    size, symbol = pick_unit(mean, units)
    if not abs(mean / size) < 1e7:  # not finite, or nothing that any unit suits
        return f"{mean:.3g}"
    digits = decimals(mean / size)
    spread = "" if std is None else f" ± {std / size:.{digits}f}"
    if spread and not float(spread[3:]):  # nothing of it would show
        spread = ""
    return f"{mean / size:.{digits}f}{spread} {symbol}"


def interval(low: float, high: float, units: Sequence[Unit]) -> str:
    """An interval in the unit of its upper end.

    Example:
        >>> interval(0.0098, 0.0123, SECONDS)
        '9.8–12.3 ms'
    """
    size, symbol = pick_unit(high, units)
    digits = decimals(high / size)
    return f"{low / size:.{digits}f}–{high / size:.{digits}f} {symbol}"


def decimals(value: float, significant: int = 3) -> int:
    """Number of digits after the decimal point that shows a number of significant digits.

    Example:
        >>> decimals(12.3), decimals(0.0456), decimals(1234.0)
        (1, 4, 0)
    """
    if value == 0 or not isfinite(value):
        return significant - 1
    return max(0, significant - 1 - floor(log10(abs(value))))


def ratio(value: float) -> str:
    """A ratio with two decimals, or as a power of ten if it is too large or too small for that.

    Example:
        >>> ratio(0.8149), ratio(1e12)
        ('0.81×', '1e+12×')
    """
    return f"{value:.2f}×" if abs(value) < 1e5 else f"{value:.3g}×"


def keep_rate(keep: float) -> str:
    """A keep rate, written as a unit fraction if it is one.

    Example:
        >>> keep_rate(1.0), keep_rate(0.125), keep_rate(0.3)
        ('1', '1/8', '0.3')
    """
    inverse = 1 / keep
    if abs(inverse - round(inverse)) < 1e-6:
        return "1" if round(inverse) == 1 else f"1/{round(inverse)}"
    return f"{keep:.3g}"
