"""The site of randbp: ``make docs`` builds it from nothing, without a network and without a warning."""

import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import randbp  # noqa: E402

project, author, release = "randbp", "the authors of randbp", randbp.__version__
copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "gallery/*.md",
    "examples/*.py",
    "examples/*.ipynb",
    "examples/*.json",
    "**sg_execution_times.rst",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]
html_theme = "furo"
html_title = f"randbp {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = False
html_math_renderer = "mathml"
templates_path: list[str] = []
autodoc_mock_imports = ["transformers"]
autodoc_typehints = "none"
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_custom_sections = [("Source", "References")]
napoleon_use_ivar = True
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = True
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 1e9,
    "download_all_examples": False,
    "remove_config_comments": True,
}


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext()))
    raise SkipNode


def _display(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def _readme_first(app: Any, name: str, source: list[str]) -> None:
    """The site begins with the README, whose links are from the folder above."""
    if name == "index":
        text = (HERE.parent / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
        for page in ("CONTRIBUTING.md", "CHANGELOG.md"):
            text = text.replace(f"]({page})", f"]({page.lower()})")
        source[0] = text + source[0]


def setup(app: Any) -> None:
    """Formulas become MathML, which browsers draw without a script."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("source-read", _readme_first)
