"""The verbs that run something again to see whether it is what it was."""

from __future__ import annotations

import argparse
import sys

from athanor import catalog
from athanor.cli.parts import RUN_HELP, as_number, chosen_names, new_parser, print_table, progress_for, short
from athanor.errors import UserError


def do_reproduce(words: list[str]) -> int:
    parser = new_parser("reproduce", "RUN | FILE.result.json [cluster=NAME ...]")
    parser.add_argument("run", help=f"a file that `athanor record` wrote, or {RUN_HELP}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of a result: how to run it")
    parser.add_argument("--anyway", action="store_true", help="a run: though raw documents or inputs have changed")
    _add_reproduction_options(parser)
    options = parser.parse_intermixed_args(words)
    if options.run.endswith(".json"):
        return _reproduce_result(options)
    if options.overrides:
        raise UserError("only a result file takes overrides; a run is made again as it was")

    from athanor.progress import Progress
    from athanor.runs import reproduce
    from athanor.runs.run import open_run

    with Progress() as progress:
        result = reproduce.reproduce(open_run(options.run), anyway=options.anyway, progress=progress)
    print(result["text"])
    return {"bit-identical": 0, "within tolerance": 3}.get(result["verdict"], 1)


def _reproduce_result(options: argparse.Namespace) -> int:
    from athanor.progress import Progress
    from athanor.reproduction import rerun

    with Progress() as progress:
        result = rerun.reproduce(
            rerun.find(options.run), options.overrides, tolerance=options.tolerance, first=options.first,
            progress=progress,
        )  # fmt: skip
    print(result.text)
    return rerun.EXIT_CODES[result.verdict]


def do_record(words: list[str]) -> int:
    parser = new_parser("record", "EXPERIMENT [--seeds N ...] [key=value ...]")
    parser.add_argument("overrides", nargs="+", metavar="EXPERIMENT", help="its name, and overrides as it was run with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="a run each; default its own")
    options = parser.parse_intermixed_args(words)
    named = [word if "=" in word else f"experiment={word}" for word in options.overrides]
    names = [word.partition("=")[2] for word in named if word.startswith("experiment=")]
    if len(names) != 1:
        raise UserError("say one experiment: `athanor record pretrain/demo --seeds 1 2 3`")
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError("--seeds must be different numbers")

    from athanor.reproduction import record

    path = record.record(names[0], [word for word in named if not word.startswith("experiment=")], options.seeds)
    print(short(path))
    shown = record.read(path)["metrics"]
    rows = [("metric", "mean", "95% interval", "seeds")]
    for name, found in shown.items():
        interval = f"{as_number(found['low'])} to {as_number(found['high'])}" if found["low"] is not None else ""
        rows.append((name, as_number(found["mean"]), interval, str(found["seeds"])))
    print_table(rows)
    return 0


def do_verify(words: list[str]) -> int:
    parser = new_parser("verify", "[EXPERIMENT ...] [cluster=NAME ...]")
    parser.add_argument(
        "overrides", nargs="*", metavar="EXPERIMENT", help="only these (FOLDER/ for all below); how to run"
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, metavar="M", help="pass over results that took longer; default 30"
    )
    _add_reproduction_options(parser)
    options = parser.parse_intermixed_args(words)

    from athanor.progress import Progress, clock
    from athanor.reproduction import verify

    paths = verify.results([word for word in options.overrides if "=" not in word])
    if not paths:
        raise UserError("no result is recorded yet; `athanor record EXPERIMENT` writes one")
    rows = []
    for row in verify.verify(
        paths, [word for word in options.overrides if "=" in word], minutes=options.minutes, first=options.first,
        tolerance=options.tolerance, progress=Progress,
    ):  # fmt: skip
        rows.append(row)
        print(f"{row.name}: {row.verdict}", file=sys.stderr, flush=True)
    took = [clock(row.seconds) if row.seconds else "" for row in rows]
    print_table([("result", "verdict", "took", ""), *((r.name, r.verdict, t, r.detail) for r, t in zip(rows, took))])
    return verify.exit_code(rows)


def do_prove(words: list[str]) -> int:
    parser = new_parser("prove", "experiment=NAME [strategies=A,B] [steps=N] [key=value ...]", experiments=True)
    parser.listed = "train"
    chosen, overrides = chosen_names(
        parser.parse_intermixed_args(words).overrides, "prove", "experiment", "strategies", "steps"
    )
    if not chosen.get("steps", "4").isdigit():
        raise UserError(f"steps={chosen['steps']} must be a number")
    catalog.find(chosen["experiment"], "train")

    from athanor import config
    from athanor.runs import prove

    experiment = config.load(chosen["experiment"], overrides)
    names = chosen.get("strategies", "ddp,fsdp2,deepspeed_zero2,deepspeed_zero3").strip("[]").split(",")
    with progress_for(experiment) as progress:
        result = prove.prove(experiment, [name.strip() for name in names], int(chosen.get("steps", 4)), progress)
    print(prove.table(result), end="")
    print(f"\n{result['table']}")
    return 0 if prove.holds(result) else 1


def _add_reproduction_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--first", action="store_true", help="of a result: only its first seed")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, metavar="X",
        help="of a result: metrics this far apart, relative, are the same within tolerance; default 0.01",
    )  # fmt: skip
