"""Completion of commands, options and their values in bash, by a script that needs no Python when it runs.

What asks the program at each press of the key, such as argcomplete, would import PyTorch and Lightning each time.
"""

from argparse import Action, ArgumentParser
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, get_args, get_origin

from randbp import Estimator

from . import advise, report, sweep, tune
from .configuration import ESTIMATORS
from .fit import CLI

SCRIPT = """\
# Completion of randbp, for bash.
_randbp() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    COMPREPLY=()
    if [[ $word == "=" ]]; then word=""; before="="; set -- "${{COMP_WORDS[COMP_CWORD-1]}}"
    elif [[ $before == "=" ]]; then set -- "${{COMP_WORDS[COMP_CWORD-2]}}"
    else set -- ""; fi
    if (( COMP_CWORD == 1 )); then words="{commands}"
    elif [[ $before == "=" ]]; then
        case $1 in
{values}
        esac
    elif [[ $word == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{options}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${{COMPREPLY[0]}} != *= ]] || compopt -o nospace 2> /dev/null || true
}}
complete -o default -F _randbp randbp
"""


def script() -> str:
    """The script with all commands and options, and the values of options that have a few."""
    known = parsers()
    options = {name: " ".join(_options(parser)) for name, parser in known.items()}
    for name in ("advise", "tune"):  # which take those of fit, too
        options[name] += f" {options['fit']}"
    values = {
        word: " ".join(of)
        for parser in known.values()
        for action in parser._actions
        for word in action.option_strings
        if (of := _values(action))
    }
    return SCRIPT.format(commands=" ".join(known), options=_cases(options), values=_cases(values))


def parsers() -> dict[str, ArgumentParser]:
    """The parser of each command."""
    try:
        _Parsers(["fit"])
    except _Made as made:
        others = {"advise": advise, "tune": tune, "sweep": sweep, "report": report}
        return {**made.args[0], **{name: module.make_parser() for name, module in others.items()}}
    raise AssertionError


class _Made(Exception):
    pass


class _Parsers(CLI):
    """Makes the parsers and stops."""

    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
        raise _Made(self._subcommand_parsers)


def _options(parser: ArgumentParser) -> Iterable[str]:
    for action in parser._actions:
        takes_value = action.nargs != 0 and not action.dest.endswith("help")
        yield from (f"{word}{'=' * takes_value}" for word in action.option_strings if word.startswith("--"))


def _values(action: Action) -> list[str]:
    """The values that an option has, if they are few and known."""
    if action.choices is not None:
        return [str(value) for value in action.choices]
    return list(dict.fromkeys(_named(getattr(action, "_typehint", None))))


def _named(kind: Any) -> Iterable[str]:
    if kind is bool:
        yield from ("true", "false")
    elif kind is Estimator:
        yield from ESTIMATORS
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) not in (dict, list):
        for each in get_args(kind):
            yield from _named(each)


def _cases(words: Mapping[str, str]) -> str:
    return "\n".join(f'            {name}) words="{each}" ;;' for name, each in words.items())
