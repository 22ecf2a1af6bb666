"""Known words that are near to a mistyped one."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Ask whether the nearest of the known words was meant; empty if none is near.

    Example:
        >>> nearest("memroy", ["exact", "memory", "time"]), nearest("fast", ["exact", "memory", "time"])
        (' (did you mean memory?)', '')
    """
    found = near_word(word, known, cutoff)
    return f" (did you mean {found}?)" if found else ""


def near_word(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word that is nearest to another one, whatever its case; empty if none is near.

    Example:
        >>> near_word("spatail", ["Spatial", "Axes"])
        'Spatial'
    """
    words: dict[str, list[str]] = {}
    for it in sorted(known):
        words.setdefault(it.lower(), []).append(it)
    close = difflib.get_close_matches(str(word).lower(), words, n=1, cutoff=cutoff)
    alike = words[close[0]] if close else [""]
    return max(alike, key=lambda it: difflib.SequenceMatcher(None, str(word), it).ratio())
