"""The verbs that run experiments, and the plan of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from athanor.cli.parts import (
    add_execution_options,
    as_number,
    chosen_experiment,
    first_metric,
    new_parser,
    print_table,
    progress_for,
    short,
)
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.config import Experiment


def _execute(verb: str, words: list[str]) -> int:
    parser = new_parser(verb, "experiment=NAME [key=value ...]", experiments=True)
    add_execution_options(parser)
    parser.add_argument("--print", action="store_true", dest="show", help="show the resolved config and stop")
    parser.add_argument("--with-inputs", action="store_true", help="make unfinished input runs first")
    if verb == "prepare":
        parser.add_argument("--parts", metavar="K/N", help="documents: make the parts K, K + N, ... and stop")
    options = parser.parse_intermixed_args(words)
    name, overrides = chosen_experiment(verb, options.overrides)

    from athanor import config

    experiment = config.load(name, overrides)
    if options.show:
        import yaml

        print(f"# {experiment.name}  {experiment.fingerprint}\n# {experiment.directory}")
        print(yaml.safe_dump(experiment.config, sort_keys=False, allow_unicode=True), end="")
        if not options.check:
            return 0
    if options.check:
        rehearse(experiment)
        print(f"ok {experiment.name} {experiment.fingerprint} {short(experiment.directory)}")
        return 0

    if verb == "prepare" and options.parts:
        return _make_parts(experiment, options.parts)

    from athanor.progress import clock
    from athanor.runs import store
    from athanor.runs.context import rank

    execution = [text for text in overrides if config.is_execution(text)]
    before = (
        [_as_its_reader(entry, execution) for entry in store.unfinished_inputs(experiment)]
        if options.with_inputs
        else []
    )
    for entry in (*before, experiment):
        entry.validate()
    done = store.is_finished(experiment) and not options.force
    with progress_for(experiment) as progress:
        if before:
            progress.plan([entry.name for entry in (*before, experiment)])
        for entry in before:
            store.execute(entry, progress=progress)
        run = store.execute(experiment, force=options.force, progress=progress)
    if rank() > 0:
        return 0
    took = "already done" if done else clock(run.manifest["seconds"])
    print(f"{run.id}  {run.status}  {took}\n{short(run.directory)}")
    if verb == "prepare":
        from athanor import pipeline

        for made in (*(store.Run(entry.directory) for entry in before if entry.kind == "prepare"), run):
            card = pipeline.data_card(made, anew=made is run and not done)
        if card:
            print(f"data card: {short(card)}")
    print_table([(metric, as_number(value)) for metric, value in run.metrics.items()])
    return 0


def rehearse(experiment: Experiment) -> None:
    """Raises UserError with all that is wrong with the config's keys, or with the first thing that a training's parts,
    built without memory, refuse; torch is imported only if the keys are right.
    """
    experiment.validate()
    if experiment.kind == "train":
        from athanor.planning.rehearsal import rehearse

        rehearse(experiment)


def _make_parts(experiment: Experiment, chosen: str) -> int:
    """Parts K, K + N, ... of a corpus; of an array of SLURM, K is the number of the element."""
    import os

    first, _, step = chosen.partition("/")
    first = first or os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise UserError(f"--parts {chosen} is K/N, with K from 1 to N; K is left out in an array of SLURM")

    from athanor.corpus.executors import make_some
    from athanor.runs import store

    experiment.validate()
    if store.is_finished(experiment):
        print("already done")
        return 0
    with progress_for(experiment) as progress:
        progress.start(f"{experiment.name}: parts")
        count = make_some(experiment, int(first) - 1, int(step), progress.update)
        progress.finish()
    print(f"{count} parts are there")
    return 0


def _as_its_reader(experiment: Experiment, execution: Sequence[str]) -> Experiment:
    """An input's experiment, run the way its reader was told to run."""
    from athanor import config

    more = [text for text in config.applicable(experiment.name, execution) if text not in experiment.overrides]
    same = config.load(experiment.name, (*experiment.overrides, *more))
    return same if same.directory == experiment.directory else experiment


def do_plan(words: list[str]) -> int:
    if any(word.startswith("size=") for word in words):
        return _plan_corpus(words)
    usage = "experiment=NAME [cluster=NAME] [key=value ...] | experiment=DOCUMENTS size=100TB [key=value ...]"
    parser = new_parser("plan", usage, experiments=True)
    parser.listed = "train"
    parser.add_argument(
        "--device", metavar="NAME", help="such as h100, or cpu; default the cluster's or this machine's"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="of a device; default what is known of it")
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="of the device's peak; default 0.4, on a CPU 0.3")
    parser.add_argument("--rate", type=float, metavar="TOKENS", help="tokens a second of a device, in place of --mfu")
    parser.add_argument("--length", type=int, metavar="TOKENS", help="of a row; default the longest there may be")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(words)
    name, overrides = chosen_experiment("train", options.overrides, verb="plan")

    from athanor import config

    experiment = config.load(name, overrides)

    from athanor.planning import plan, show

    wishes = plan.Wishes(options.mfu, options.device, options.memory, options.length, options.rate)
    found = plan.plan(experiment, wishes)
    if options.json:
        print(show.as_json(found))
        return 0

    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(show.render(found))
    return 0


def _plan_corpus(words: list[str]) -> int:
    parser = new_parser("plan", "experiment=NAME size=100TB [key=value ...]", experiments=True)
    parser.listed = "prepare"
    parser.add_argument("--sample", default="50MB", metavar="SIZE", help="of the files, to measure on; default 50MB")
    parser.add_argument("--cores", type=int, default=1000, metavar="N", help="that there will be; default 1000")
    parser.add_argument("--memory", type=float, default=64, metavar="GIB", help="of a process; default 64")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(words)
    size = next(word for word in options.overrides if word.startswith("size=")).removeprefix("size=")
    name, overrides = chosen_experiment(
        "prepare", [word for word in options.overrides if not word.startswith("size=")], verb="plan"
    )

    from athanor import config
    from athanor.planning import corpus

    experiment = config.load(name, overrides)
    experiment.validate()
    found = corpus.plan(
        experiment, corpus.size_in_bytes(size), corpus.size_in_bytes(options.sample), options.cores, options.memory
    )
    if options.json:
        print(found.as_json())
        return 0
    print_table([(experiment.name, "sample", size), *corpus.rows(found)])
    if found.unknown:
        print(f"not counted: memory of {', '.join(found.unknown)}")
    return 0


def do_pipeline(words: list[str]) -> int:
    parser = new_parser("pipeline", "experiment=NAME [key=value ...] [step.key=value ...]", experiments=True)
    add_execution_options(parser)
    options = parser.parse_intermixed_args(words)
    name, overrides = chosen_experiment("pipeline", options.overrides)

    from athanor import pipeline

    composed = pipeline.load(name, overrides)
    if options.check:
        pipeline.validate(composed)
        for step, experiment in composed.steps.items():
            rehearse(experiment)
            print(f"ok {step} {experiment.name} {experiment.fingerprint} {short(experiment.directory)}")
        return 0

    from athanor.progress import clock
    from athanor.runs import store
    from athanor.runs.context import rank

    done = {step for step, experiment in composed.steps.items() if store.is_finished(experiment) and not options.force}
    with progress_for(next(iter(composed.steps.values()))) as progress:
        runs = pipeline.run(composed, force=options.force, progress=progress)
    if rank() > 0:
        return 0
    rows = [("step", "run", "took", "", "")]
    for step, run in runs.items():
        took = "already done" if step in done else clock(run.manifest["seconds"])
        rows.append((step, run.id, took, *first_metric(run)))
    print_table(rows)
    if page := pipeline.report_path(composed):
        print(f"\nreport: {short(page)}")
    return 0


do_prepare, do_train, do_evaluate = (partial(_execute, verb) for verb in ("prepare", "train", "evaluate"))
