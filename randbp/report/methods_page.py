"""The comparison of methods as the first part of the page."""

from collections.abc import Sequence
from html import escape

from .finding import advice, finding, other_findings
from .methods_file import Methods
from .methods_plot import accuracy_difference_plot, tradeoff_plot
from .methods_table import HEADINGS, cells, method_notes
from .standing import Standing, standings


def methods_part(methods: Methods) -> str:
    """Make the part: finding, table, plots, advice, and the facts of the comparison."""
    stand = standings(methods)
    return "".join(
        (
            f"<p class=lead>{escape(finding(stand))}</p>",
            "".join(f"<p class=more>{escape(text)}</p>" for text in other_findings(stand)),
            _table(stand),
            "".join(f"<p class=note>{escape(note)}</p>" for note in method_notes(methods)),
            '<div class="figures two">'
            f"<figure>{tradeoff_plot(methods)}</figure><figure>{accuracy_difference_plot(methods)}</figure></div>",
            _advice(advice(stand, methods.minibatch_noise)),
            _compared(methods),
        )
    )


def methods_facts(methods: Methods) -> str:
    """Model, data and length of the trainings."""
    facts = [methods.model, methods.data, f"{methods.parameters:,} parameters", f"batch {methods.batch_size}"]
    facts += [f"{methods.steps} steps", f"{len(methods.exact.trainings)} seeds"]
    return " <span>·</span> ".join(escape(fact) for fact in facts)


def _table(stand: Sequence[Standing]) -> str:
    head = "<th class=text>Method</th>"
    for index, heading in enumerate(HEADINGS):
        head += f"<th{' colspan=2' if index < 3 else ''}>{escape(heading.capitalize())}</th>"
    rows = ""
    for standing in stand:
        row = f"<td class=text><code>{escape(standing.method.name)}</code></td>"
        for index, (value, relation) in enumerate(cells(standing)):
            row += f"<td>{escape(value)}</td>" + (f"<td class=ratio>{relation}</td>" if index < 3 else "")
        rows += f"<tr{' class=exact' if standing.method.role == 'exact' else ''}>{row}</tr>"
    return f"<div class=scroll><table class=main><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _advice(lines: Sequence[str]) -> str:
    if not lines:
        return "<h2>What to change</h2><p>Nothing: every preset pays here.</p>"
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>What does not pay here, and what to change</h2><ul class=advice>{items}</ul>"


def _compared(methods: Methods) -> str:
    definitions = "".join(f"<dt>{escape(m.name)}</dt><dd>{escape(m.what)}</dd>" for m in methods.methods)
    about = "".join(f"<p class=about>{escape(text)}</p>" for text in methods.about)
    return f"<h2>What was compared</h2>{about}<dl>{definitions}</dl>"
