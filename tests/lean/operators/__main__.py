"""Compare every function that has a lean rule with its lean self, on all that PyTorch's database has for it.

``python -m tests.lean.operators`` is all of it (about half an hour of one core), ``--quick`` a sample. ``--part 2/4``
is the second quarter, ``--only relu`` what has that in its name. It prints one line for each kind of difference and
ends with 1 if there are any.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from randbp.lean import lean_call
from randbp.lean.needs import Rule
from randbp.lean.rules import RULES

from .database import Entry, entries, missing, modules
from .forms import FORMS, tiled
from .outcome import called, differences
from .sample import Sample

LEVELS = ("exact", True)


@dataclass
class Report:
    """Kinds of differences, and how often each occurred."""

    calls: int = 0
    found: dict[tuple[str, ...], int] = field(default_factory=dict)

    def compare(self, name: str, form: str, module: torch.nn.Module, sample: Sample) -> None:
        """Note what differs."""
        for level in LEVELS:
            self.calls += 1
            if difference := differences(module, sample, level):
                key = (name, form, str(level), re.split(r"[:\d]", difference)[0])
                if key not in self.found:
                    print(" | ".join([*key[:3], difference[:300]]), flush=True)
                self.found[key] = self.found.get(key, 0) + 1


def _cases(entry: Entry, quick: bool) -> Iterator[tuple[str, Sample]]:
    """The samples of a function, and their forms: of the first ones alone, for there are thousands of some."""
    dtypes = [torch.float32] if quick else entry.dtypes()
    for dtype in dtypes:
        if dtype not in entry.dtypes():
            continue
        samples = list(entry.samples(dtype))
        for sample in samples[:2] if quick else samples:
            yield str(dtype), sample
        if quick:
            continue
        for sample in samples[:3]:
            large = tiled(entry.function, sample)
            for form, change in FORMS.items():
                yield f"{dtype}, {form}", change(sample)
                if large is not None:
                    yield f"{dtype}, large, {form}", change(large)
    for sample in entry.errors():
        yield "to be refused", sample


_USED: set[Any] = set()


def _watched(function: Any, rule: Rule) -> Rule:
    """A rule that notes when it steps in."""

    class Watched:
        held, signature = rule.need.held, rule.need.signature

        def serve(self, *args: Any, **kwargs: Any) -> Any:
            result = rule.need.serve(*args, **kwargs)
            if result is not NotImplemented:
                _USED.add(function)
            return result

    return replace(rule, need=Watched())


def main() -> int:
    """See the module's own words."""
    parser = argparse.ArgumentParser(prog="python -m tests.lean.operators", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two samples of each function, in single precision")
    parser.add_argument("--part", default="1/1", help="which part of how many")
    parser.add_argument("--only", default="", help="a part of the names of functions")
    options = parser.parse_args()
    part, of = map(int, options.part.split("/"))
    torch.set_num_threads(1)
    lean_call.SMALL = 0  # the database's tensors are small
    RULES.update({function: _watched(function, rule) for function, rule in RULES.items()})
    report = Report()
    chosen = [
        entry for number, entry in enumerate(entries()) if number % of == part - 1 and options.only in entry.label
    ]
    for entry in chosen:
        for form, sample in _cases(entry, options.quick):
            report.compare(entry.label, form, called(entry.function), sample)
    for dtype in [torch.float32] if options.quick else [torch.float32, torch.float64]:
        for number, (name, module, sample) in enumerate(modules(dtype, first_only=options.quick)):
            if number % of == part - 1 and options.only in name:
                report.compare(name, f"{dtype}, module", module, sample)
    print(f"{report.calls} comparisons of {len(chosen)} functions, {len(report.found)} kinds of differences")
    print(f"rules that stepped in: {len(_USED)} of {len(RULES)}")
    print(f"functions that the database does not have: {[function.__qualname__ for function in missing()]}")
    return bool(report.found)


if __name__ == "__main__":
    sys.exit(main())
