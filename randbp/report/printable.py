"""Text from a run's files in a form that changes neither a terminal nor the order of a line."""


def printable(text: str) -> str:
    r"""Replace each character that cannot be printed, or that turns the direction of text, by its escape sequence.

    Example:
        >>> print(printable("a\x1b[2J\nb"), printable("ünïcode-数字"))
        a\x1b[2J\nb ünïcode-数字
    """
    return "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)
