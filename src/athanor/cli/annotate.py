"""The verb about labels by people, with a word for each thing to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from athanor.cli.parts import new_parser, print_table, short
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.annotation.project import Project

USAGE = "export | import | agreement | adjudicate [...]"
TOOLS = ("label-studio", "doccano", "brat")
KINDS = ("answers", "pairs", "classes", "spans")


def do_annotate(words: list[str]) -> int:
    action: dict[str, Callable[[list[str]], int]] = {
        "export": _export, "import": _import, "agreement": _agreement, "adjudicate": _adjudicate,
    }  # fmt: skip
    if not words or words[0] not in action:
        parser = new_parser("annotate", USAGE)
        parser.add_argument("action", choices=action, help="`athanor annotate ACTION --help` says more of each")
        parser.parse_args(words)
        raise UserError(f"say what to do: {', '.join(action)}")
    return action[words[0]](words[1:])


def _export(words: list[str]) -> int:
    parser = new_parser("annotate", "export KIND FILE [...] --to TOOL --out FOLDER")
    parser.add_argument("kind", choices=KINDS, help="what is asked of each record")
    parser.add_argument("files", nargs="+", metavar="FILE", help="records, JSON Lines, or documents of a run")
    parser.add_argument("--to", choices=TOOLS, required=True, help="the tool")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new project")
    parser.add_argument("--labels", default="", metavar="A,B,C", help="of classes and spans; default those there are")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing")
    parser.add_argument("--show", action="store_true", help="what the record says already; default not, but of answers")
    parser.add_argument("--text-key", default="text", help="field of the text")
    parser.add_argument("--label-key", default="label", help="field of the label")
    options = parser.parse_args(words)
    if options.sample is not None and options.sample < 1:
        raise UserError(f"--sample {options.sample} must be at least 1")

    from athanor.annotation import items, project

    found = items.items_of(options.files, options.kind, options.text_key, options.label_key)
    chosen = items.sample(found, options.sample, options.seed)
    shown = options.show or options.kind == "answers"
    opinions = {item.id: {"record": item.label} for item in chosen if shown and item.label is not None}
    labels = [label.strip() for label in options.labels.split(",") if label.strip()]
    written = project.export(Path(options.out), chosen, options.kind, options.to, labels, opinions)
    print(f"{len(chosen)} items for {options.to}: {', '.join(map(short, written))}")
    return 0


def _import(words: list[str]) -> int:
    parser = new_parser("annotate", "import FOLDER FILE [...]")
    parser.add_argument("folder", help="the project that was exported")
    parser.add_argument("files", nargs="+", metavar="FILE", help="what the tool gave back; of BRAT folders")
    parser.add_argument("--tool", choices=TOOLS, help="default that of the export")
    parser.add_argument("--annotator", metavar="NAME", help="whose they are; default as the tool says")
    options = parser.parse_args(words)

    from athanor.annotation import project

    opened = project.load(Path(options.folder))
    taken = project.take(opened, [Path(name) for name in options.files], options.tool, options.annotator)
    rows = [(who, f"{sum(who in said for said in taken.annotations.values())} items") for who in taken.annotators]
    print_table(rows or [("no annotations", "")])
    return 0


def _agreement(words: list[str]) -> int:
    parser = new_parser("annotate", "agreement FOLDER [--gold FILE]")
    parser.add_argument("folder", help="the project, its annotations imported")
    parser.add_argument("--gold", metavar="FILE", help="right labels of some items; default those by `gold`")
    parser.add_argument("--adjudicator", metavar="NAME", help="an annotator whose word is final")
    parser.add_argument("--target", type=float, default=0.03, metavar="SHARE", help="of wrong labels; default 0.03")
    parser.add_argument("--text-key", default="text", help="field of the text of --gold")
    parser.add_argument("--label-key", default="label", help="field of the label of --gold")
    options = parser.parse_args(words)
    if not 0 < options.target < 1:
        raise UserError(f"--target {options.target} is a share, between 0 and 1")

    from athanor.annotation import items, project

    opened = project.load(Path(options.folder))
    gold = {identity: said["gold"] for identity, said in opened.annotations.items() if "gold" in said}
    if options.gold:
        found = items.items_of([options.gold], opened.kind, options.text_key, options.label_key)
        gold = {item.id: item.label for item in found if item.label is not None}
    several = any(len({*said} - {"gold", options.adjudicator}) > 1 for said in opened.annotations.values())
    if several or not gold:
        _show_agreement(opened, options.adjudicator)
    if gold:
        _show_errors(opened, gold, options.adjudicator, options.target)
    return 0


def _show_agreement(opened: Project, adjudicator: str | None) -> None:
    from athanor.annotation.agreement import agreement

    found = agreement(opened, tuple(filter(None, ("gold", adjudicator))))
    print(f"{len(opened.annotations)} of {len(opened.items)} items annotated; disputed: {len(found.disputed)}")
    print_table([(who, f"{count} items") for who, count in found.labelled.items()])
    print_table(
        [("between", "", "items", "equal", "Cohen", "F1")]
        + [(p.one, p.other, f"{p.items}", f"{p.equal:.3f}", _or_none(p.kappa), _or_none(p.f1)) for p in found.pairs]
    )
    if found.fleiss:
        kappa, items, raters = found.fleiss
        print(f"Fleiss {kappa:.3f}, of {items} {_counted(opened)} with {raters} labels each")
    if found.alpha is not None:
        print(f"Krippendorff {found.alpha:.3f}")


def _show_errors(opened: Project, gold: dict, adjudicator: str | None, target: float) -> None:
    from athanor.annotation.adjudicate import adjudicate
    from athanor.annotation.agreement import error_rate

    rows = [("labels of", "wrong", "gold items", "error rate", "95%", f"target {target:.1%}")]
    own = {
        who: {identity: said[who] for identity, said in opened.annotations.items() if who in said}
        for who in opened.annotators
        if who != "gold"
    }
    needed = None
    for who, labels in {**own, "all, adjudicated": adjudicate(opened, adjudicator).labels}.items():
        if not {*labels} & {*gold} and who in own:
            continue
        found = error_rate(opened.kind, labels, gold, target)
        needed = found.needed if found.verdict == "undecided" else None
        rate = found.rate
        rows.append(
            (who, f"{found.errors}", f"{found.items}", f"{rate.value:.2%}", f"{rate.low:.2%} - {rate.high:.2%}",
             found.verdict)
        )  # fmt: skip
    print_table(rows)
    if needed:
        print(f"at that rate about {needed} gold items would show it below the target")


def _adjudicate(words: list[str]) -> int:
    parser = new_parser("annotate", "adjudicate FOLDER --out FILE [--disputed FOLDER]")
    parser.add_argument("folder", help="the project, its annotations imported")
    parser.add_argument("--out", required=True, metavar="FILE", help="records for training, JSON Lines")
    parser.add_argument("--disputed", metavar="FOLDER", help="a new project of the items to be decided")
    parser.add_argument("--adjudicator", metavar="NAME", help="an annotator whose word is final")
    parser.add_argument("--minimum", type=int, default=1, metavar="N", help="annotators that an item takes; default 1")
    options = parser.parse_args(words)

    from athanor.annotation import project
    from athanor.annotation.adjudicate import adjudicate, records
    from athanor.annotation.items import write_lines

    opened = project.load(Path(options.folder))
    decided = adjudicate(opened, options.adjudicator, options.minimum)
    made = list(records(opened, decided.labels))
    if options.disputed and decided.disputed:
        items = [opened.items[identity] for identity in decided.disputed]
        project.export(Path(options.disputed), items, opened.kind, opened.tool, opened.labels, opened.annotations)
    write_lines(Path(options.out), made)
    ties = len(decided.labels) - len(made)
    print(f"{len(made)} records: {short(Path(options.out))}" + (f"; {ties} ties left out" if ties else ""))
    print(f"disputed {len(decided.disputed)}, annotated by too few {len(decided.open)}")
    if options.disputed and decided.disputed:
        print(f"to be decided: {short(Path(options.disputed))}; import the decisions into {options.folder}")
    return 0


def _counted(opened: Project) -> str:
    return "words or characters" if opened.kind == "spans" else "items"


def _or_none(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
