"""What the verbs share: their parser, the names and overrides of a command line, and how things are shown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from athanor import catalog
from athanor.cli import VERBS
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.config import Experiment
    from athanor.progress import Progress
    from athanor.runs.run import Run

RUN_HELP = "a run's folder, `experiment/fingerprint` or the beginning of it, or an experiment that has one run"


class Parser(argparse.ArgumentParser):
    listed = ""  # the verb whose experiments the help lists

    def format_help(self) -> str:
        if not self.listed:
            return super().format_help()
        entries = catalog.entries(self.listed)
        width = max((len(entry.name) for entry in entries), default=0)
        lines = [f"  {entry.name:<{width}}  {entry.description}".rstrip() for entry in entries]
        return "\n".join((super().format_help(), "experiments:", *(lines or ["  none yet"]), ""))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says what there is")


def new_parser(verb: str, usage: str, *, experiments: bool = False) -> Parser:
    parser = Parser(
        prog=f"athanor {verb}",
        usage=f"athanor {verb} {usage}",
        description=VERBS[verb][0].upper() + VERBS[verb][1:] + ".",
        allow_abbrev=False,
    )
    if experiments:
        parser.listed = verb
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, in Hydra's syntax")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="compose and check, build nothing, and stop")
    parser.add_argument("--force", action="store_true", help="run though it is done already")


def chosen_experiment(kind: str, words: Sequence[str], verb: str = "") -> tuple[str, list[str]]:
    """The experiment of a command line, of the right kind, and its overrides. `verb`: default that of the kind."""
    verb = verb or kind
    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    if len(names) != 1:
        known = [entry.name for entry in catalog.entries(kind)]
        bare = next((word for word in words if "=" not in word and word[0] not in "+~"), None)
        if not names and bare:
            near = bare if bare in known else f"{bare}` if you mean an experiment, or `key=value"
            raise UserError(f"{bare!r} is no override; write `experiment={near}`")
        said = "say one experiment, not several" if names else "say which experiment"
        raise UserError(f"{said}: `athanor {verb} experiment=NAME`; there are: {', '.join(known) or 'none'}")
    catalog.find(names[0], kind)
    return names[0], [word for word in words if not word.startswith("experiment=")]


def chosen_names(words: Sequence[str], verb: str, *names: str) -> tuple[dict[str, str], list[str]]:
    """What a command line names, the first of `names` being necessary, and its overrides."""
    pairs = [(name, text) for name, sign, text in (word.partition("=") for word in words) if sign and name in names]
    if [name for name, _ in pairs].count(names[0]) != 1 or len(dict(pairs)) < len(pairs):
        raise UserError(f"say one {names[0]}: `athanor {verb} {names[0]}=NAME`; `athanor sweep --help` lists them")
    return dict(pairs), [word for word in words if word.partition("=")[0] not in names]


def progress_for(experiment: Experiment) -> Progress:
    from athanor.progress import Progress
    from athanor.runs.context import rank

    return Progress(experiment.config["display"]["progress"], quiet=rank() > 0)


def first_metric(run: Run) -> tuple[str, str]:
    """The first of a run's metrics, which is its most telling one."""
    return next(((name, as_number(value)) for name, value in run.metrics.items()), ("", ""))


def as_number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def short(path: Any) -> str:
    """A path as seen from here, if it is below."""
    from pathlib import Path

    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else str(path)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
