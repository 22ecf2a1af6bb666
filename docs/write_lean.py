"""Writes ``docs/lean.md``, the list of functions that lean mode serves, from the table of :mod:`randbp.lean.rules`.

Run ``python docs/write_lean.py`` from the root of a checkout.
"""

from pathlib import Path

from randbp.lean.needs import Rule, functions_of
from randbp.lean.rules import RULES, SECTIONS

PAGE = Path(__file__).with_name("lean.md")
INTRODUCTION = """# Functions that lean mode serves

`docs/write_lean.py` writes this page from the table in `randbp/lean/rules.py`; a test says if it is out of date.

*Level* is `exact` where `lean="exact"` serves a function, with PyTorch's gradient bit for bit. Some of these hold even
less with `lean=True`, where gradients may be rounded. A function with level `rounded` is left to PyTorch by
`lean="exact"`. *Bits* are those that suffice per entry of the floating tensors that PyTorch holds, with `bits=4`; "-"
means that it depends on the arguments. Scales of blocks take a quarter of a bit more. A name stands for the function of
`torch`, the method of a tensor and the functions of `torch.special` and `torch.nn.functional`, and for the version in
place, as far as PyTorch has them.
"""


def row(rule: Rule) -> str:
    """A line of the page: names, level, bits and why they suffice."""
    held = rule.need.held
    names = [name for name in rule.names.split() if any(RULES.get(function) is rule for function in functions_of(name))]
    bits = "-" if held.bits is None else f"{held.bits:g}"
    return f"| {', '.join(f'`{name}`' for name in names)} | {rule.level} | {bits} | {held.why} |"


def page() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for title, rules in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| functions | level | bits | why that suffices |\n|---|---|---|---|\n")
        parts.append("\n".join(map(row, rules)) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
