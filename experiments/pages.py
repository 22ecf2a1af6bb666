"""Pages of experiments: Markdown, and the same as one HTML file."""

import base64
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch
from markdown_it import MarkdownIt

from randbp.diagnostics import describe_environment
from randbp.report.page import STYLE

TABLES = "table{margin:1.2rem 0;font-size:.85rem} img{max-width:100%;background:#fff} main p{max-width:46rem}"


def told(options: Mapping[str, Any]) -> str:
    """Options, or an environment, in one line.

    Example:
        >>> told({"steps": 3, "width": 0.5})
        'steps 3, width 0.5'
    """
    return ", ".join(f"{name} {value}" for name, value in options.items())


def write_pages(path: Path, title: str, command: str, options: Mapping[str, Any], blocks: Iterable[str]) -> list[str]:
    """Write a Markdown file with command, options and environment, and HTML beside it; lines that say where.

    Args:
        path: Of the Markdown file.
        title: Its heading.
        command: What made it, after ``python -m experiments``.
        options: Of the command.
        blocks: Paragraphs, tables and figures in Markdown.
    """
    environment = told(describe_environment(torch.device("cpu")))
    chosen = f": {told(options)}" if options else ""
    lines = [f"# {title}", f"`python -m experiments {command}`{chosen}. {environment}", *blocks]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return [f"written to {path}", f"written to {as_html(path)}"]


def as_html(path: Path) -> Path:
    """Write a Markdown file as a self-contained HTML page beside it, in the look of reports, and give its path."""
    text = path.read_text(encoding="utf-8")
    title = text.partition("\n")[0].removeprefix("# ")

    def embedded(found: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((path.parent / found[1]).read_bytes()).decode()}"'

    body = MarkdownIt("commonmark").enable("table").render(text)
    body = re.sub(r'src="([^":]+\.png)"', embedded, body)
    body = body.replace("<table>", "<div class=scroll><table>").replace("</table>", "</table></div>")
    page = path.with_suffix(".html")
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE}{TABLES}</style><main>{body}</main></html>\n",
        encoding="utf-8",
    )
    return page


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(table(["x", "y"], [["1", "2"]]))
        | x | y |
        |---|---|
        | 1 | 2 |
    """
    heads = list(columns)
    lines = [heads, *(list(row) for row in rows)]
    found = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([found[0], "|" + "---|" * len(heads), *found[1:]])
