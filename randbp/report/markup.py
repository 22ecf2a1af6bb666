"""Pieces of HTML."""

from collections.abc import Iterable
from html import escape


def paragraphs(kind: str, texts: Iterable[str]) -> str:
    """Paragraphs of one class."""
    return "".join(f"<p class={kind}>{escape(text)}</p>" for text in texts)


def facts(texts: Iterable[str]) -> str:
    """One line of short facts with dots between them."""
    return f"<p class=facts>{' <span>·</span> '.join(escape(text) for text in texts)}</p>"


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they are."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def figures(kind: str, plots: Iterable[str]) -> str:
    """Plots side by side, as many in a row as the class says; nothing if there are none."""
    shown = "".join(f"<figure>{plot}</figure>" for plot in plots)
    return f'<div class="figures {kind}">{shown}</div>' if shown else ""
