"""Text from a run's files in a form that changes neither a terminal nor the order of a line."""

import unicodedata

HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, lone surrogates (undecodable bytes of a path), line and paragraph ends."""

REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text after them."""


def printable(text: str) -> str:
    r"""Replace each character that controls a terminal by its escape sequence.

    Example:
        >>> print(printable("a\x1b[2J\nb"), printable("ünïcode-数字"))
        a\x1b[2J\nb ünïcode-数字
    """
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in REORDERING or unicodedata.category(character) in HIDDEN:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
