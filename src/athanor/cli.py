"""The verbs. Nothing heavy is imported before one is chosen; what a user got wrong is one sentence and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from athanor import __version__, catalog, signals
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.config import Experiment
    from athanor.progress import Progress
    from athanor.runs.run import Run
    from athanor.sweeps.ablation import Ablation
    from athanor.sweeps.trials import Trials

VERBS = {
    "prepare": "make data: documents, tokenizers, shards, tasks",
    "train": "train a model",
    "evaluate": "measure a model",
    "plan": "say what a training will need: parameters, memory, time",
    "pipeline": "run chained experiments and write their report",
    "sweep": "run the members of an ablation, or the trials of a search",
    "submit": "send an experiment, a pipeline, an ablation or a search to SLURM",
    "jobs": "list the jobs sent to SLURM, and how far their runs are",
    "cancel": "end jobs; a training saves itself first",
    "runs": "list the runs",
    "wandb-sync": "send to Weights & Biases what trainings have kept for it offline",
    "dashboard": "serve a page to look at the runs, on this machine only",
    "scaling": "fit a scaling law to finished trainings",
    "lineage": "walk from a run back to its raw documents, looking at every file",
    "reproduce": "rerun a run, or a recorded result, and compare",
    "record": "write an experiment's measured result beside it",
    "verify": "rerun all recorded results and say what has drifted",
    "report": "write the page about a run or a pipeline",
    "erase": "take documents out of all that was made of them",
    "prove": "train a few steps under several strategies and compare the models",
    "consolidate": "write the model of an unfinished run, out of its newest checkpoint",
    "export": "write a run's model and tokenizer in the form of Hugging Face",
}

OVERVIEW = f"""usage: athanor VERB [...]

Raw text to an aligned, evaluated language model, with a lineage for every number.

{chr(10).join(f"  {verb:<11} {text}" for verb, text in VERBS.items())}

`athanor VERB --help` says more and lists the experiments of that verb. To begin:

  athanor pipeline experiment=pipelines/demo

Exit codes: 0 done, 1 failed, 2 something to correct, 3 reproduced but not bit for bit,
75, 130 or 143 interrupted (the same command goes on)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("ATHANOR_DEBUG") not in (None, "", "0")
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        _complain(error, str(error), debug)
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        return _interrupted(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from athanor.runs.store import RunFailedError

        told = str(error) if isinstance(error, RunFailedError) else f"{type(error).__name__}: {error}"
        _complain(error, f"{told}" if debug else f"{told} (--debug shows the traceback here)", debug)
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0
    if words[0] == "--version":
        print(f"athanor {__version__}")
        return 0
    verb = words.pop(0)
    if verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}{catalog.suggest(verb, VERBS)}")
    action: dict[str, Callable[[list[str]], int]] = {
        "pipeline": _pipeline,
        "plan": _plan,
        "sweep": _sweep,
        "submit": _submit,
        "jobs": _jobs,
        "cancel": _cancel,
        "runs": _runs,
        "wandb-sync": _wandb_sync,
        "dashboard": _dashboard,
        "scaling": _scaling,
        "lineage": _lineage,
        "reproduce": _reproduce,
        "record": _record,
        "verify": _verify,
        "report": _report,
        "erase": _erase,
        "prove": _prove,
        "consolidate": _consolidate,
        "export": _export,
    }
    own = ("member=", "worker=", "trial=")
    training = verb == "train" or (verb == "sweep" and any(word.startswith(own) for word in words))
    with signals.handled(note=training or "--inputs" in words):
        return action[verb](words) if verb in action else _experiment(verb, words)


# The verbs


def _experiment(verb: str, words: list[str]) -> int:
    parser = _parser(verb, "experiment=NAME [key=value ...]", experiments=True)
    _execution_options(parser)
    parser.add_argument("--print", action="store_true", dest="show", help="show the resolved config and stop")
    parser.add_argument("--with-inputs", action="store_true", help="make unfinished input runs first")
    options = parser.parse_intermixed_args(words)
    name, overrides = _chosen(verb, options.overrides)

    from athanor import config

    experiment = config.load(name, overrides)
    if options.show:
        import yaml

        print(f"# {experiment.name}  {experiment.fingerprint}\n# {experiment.directory}")
        print(yaml.safe_dump(experiment.config, sort_keys=False, allow_unicode=True), end="")
        if not options.check:
            return 0
    if options.check:
        experiment.validate()
        print(f"ok {experiment.name} {experiment.fingerprint} {_short(experiment.directory)}")
        return 0

    from athanor.progress import clock
    from athanor.runs import store
    from athanor.runs.context import rank

    execution = [text for text in overrides if config.is_execution(text)]
    before = [_with(entry, execution) for entry in store.unfinished_inputs(experiment)] if options.with_inputs else []
    for entry in (*before, experiment):
        entry.validate()
    done = store.is_finished(experiment) and not options.force
    with _progress(experiment) as progress:
        if before:
            progress.plan([entry.name for entry in (*before, experiment)])
        for entry in before:
            store.execute(entry, progress=progress)
        run = store.execute(experiment, force=options.force, progress=progress)
    if rank() > 0:
        return 0
    took = "already done" if done else clock(run.manifest["seconds"])
    print(f"{run.id}  {run.status}  {took}\n{_short(run.directory)}")
    if verb == "prepare":
        from athanor import pipeline

        for made in (*(store.Run(entry.directory) for entry in before if entry.kind == "prepare"), run):
            card = pipeline.data_card(made, anew=made is run and not done)
        if card:
            print(f"data card: {_short(card)}")
    _table([(metric, _number(value)) for metric, value in run.metrics.items()])
    return 0


def _plan(words: list[str]) -> int:
    parser = _parser("plan", "experiment=NAME [cluster=NAME] [key=value ...]", experiments=True)
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
    name, overrides = _chosen("train", options.overrides, verb="plan")

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


def _pipeline(words: list[str]) -> int:
    parser = _parser("pipeline", "experiment=NAME [key=value ...] [step.key=value ...]", experiments=True)
    _execution_options(parser)
    options = parser.parse_intermixed_args(words)
    name, overrides = _chosen("pipeline", options.overrides)

    from athanor import pipeline

    composed = pipeline.load(name, overrides)
    if options.check:
        pipeline.validate(composed)
        for step, experiment in composed.steps.items():
            print(f"ok {step} {experiment.name} {experiment.fingerprint} {_short(experiment.directory)}")
        return 0

    from athanor.progress import clock
    from athanor.runs import store
    from athanor.runs.context import rank

    done = {step for step, experiment in composed.steps.items() if store.is_finished(experiment) and not options.force}
    with _progress(next(iter(composed.steps.values()))) as progress:
        runs = pipeline.run(composed, force=options.force, progress=progress)
    if rank() > 0:
        return 0
    rows = [("step", "run", "took", "", "")]
    for step, run in runs.items():
        took = "already done" if step in done else clock(run.manifest["seconds"])
        rows.append((step, run.id, took, *_metric(run)))
    _table(rows)
    if page := pipeline.report_path(composed):
        print(f"\nreport: {_short(page)}")
    return 0


def _sweep(words: list[str]) -> int:
    if any(word.startswith("search=") for word in words):
        return _search(words)
    usage = "ablation=NAME [member=K] [key=value ...] | search=NAME [worker=K] [key=value ...]"
    parser = _parser("sweep", usage, experiments=True)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="members at a time; default 1")
    parser.add_argument("--retries", type=int, default=1, metavar="N", help="for a member that fails; default 1")
    parser.add_argument("--list", action="store_true", dest="listed", help="show the members and stop")
    parser.add_argument("--json", action="store_true", help="with --list: a line of JSON for each")
    parser.add_argument("--inputs", action="store_true", help="make what all members read and stop")
    parser.add_argument("--check", action="store_true", help="compose and check all members and stop")
    options = parser.parse_intermixed_args(words)
    chosen, overrides = _named(options.overrides, "sweep", "ablation", "member")

    from athanor.sweeps import ablation, local, members

    composed = ablation.load(chosen["ablation"], overrides)
    if options.listed:
        _members(composed, options.json)
        return 0
    if options.check:
        composed.validate()
        print(f"ok {composed.name}: {len(composed)} members, {len(composed.cells)} for each of seeds {composed.seeds}")
        return 0
    if options.inputs or "member" in chosen:
        if not chosen.get("member", "1").isdigit():
            raise UserError(f"member={chosen['member']} must be a number from 1 to {len(composed)}")
        member = composed.member(int(chosen.get("member", 1)))

        def work() -> None:
            with _progress(member.experiment) as progress:
                made = (
                    members.make_inputs(composed, progress)
                    if options.inputs
                    else [run]
                    if (run := members.make_member(member, progress))
                    else []
                )
            for run in made:
                print(f"{run.id}  {run.status}  {_short(run.directory)}")

        members.with_retries(work, ["sweep", *words], options.retries)
        return 0
    with _progress(composed.first) as progress:
        ending = local.sweep(composed, workers=options.workers, retries=options.retries, progress=progress)
    done = len(ending.before) + len(ending.finished)
    print(f"{composed.name}: {done} of {len(composed)} members finished, {len(ending.before)} of them before")
    for member in ending.failed:
        print(f"failed: {member.number}, {member.title}; {_short(composed.directory / 'log' / f'{member.number}.txt')}")
    if ending.left:
        print(f"not begun: {len(ending.left)}; {ending.reason}")
    print(f"report: {composed.report_command}")
    return 0 if done == len(composed) else 1


def _search(words: list[str]) -> int:
    parser = _parser("sweep", "search=NAME [worker=K | trial=K] [key=value ...]", experiments=True)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at a time; default 1")
    parser.add_argument(
        "--retries", type=int, default=1, metavar="N", help="for a trial that fails or whose process dies; default 1"
    )
    parser.add_argument("--list", action="store_true", dest="listed", help="show the trials and stop")
    parser.add_argument("--json", action="store_true", help="with --list: a line of JSON for each")
    parser.add_argument("--inputs", action="store_true", help="make what all trials read and stop")
    parser.add_argument("--check", action="store_true", help="compose and check the ends of the space and stop")
    options = parser.parse_intermixed_args(words)
    chosen, overrides = _named(options.overrides, "sweep", "search", "worker", "trial")
    for key in ("worker", "trial"):
        if key in chosen and not chosen[key].isdigit():
            raise UserError(f"{key}={chosen[key]} must be a number")

    from athanor.sweeps import search

    composed = search.load(chosen["search"], overrides)
    if options.check:
        composed.validate()
        ends = ", ".join(composed.space)
        print(
            f"ok {composed.name}: {composed.trials} trials of {composed.base} over {ends}\n{_short(composed.directory)}"
        )
        return 0

    from athanor.sweeps import searching, trials

    if options.listed:
        _trials(trials.Trials(composed), options.json)
        return 0
    if "worker" in chosen:
        ended = searching.work(composed, retries=options.retries, say=lambda text: print(text, flush=True))
        print(f"{composed.name}: {ended} trials ended here, and none is left to take")
        return 0
    if "trial" in chosen or options.inputs:
        with _progress(composed.first) as progress:
            made = (
                searching.make_inputs(composed, progress)
                if options.inputs
                else searching.make_trial(composed, int(chosen["trial"]), progress)
            )
        for run in made:
            print(f"{run.id}  {run.status}  {_short(run.directory)}")
        return 0
    with _progress(composed.first) as progress:
        ending = searching.search_here(
            composed, workers=options.workers, retries=options.retries, progress=progress
        )  # fmt: skip
    counts = ending.counts
    done = counts["complete"] + counts["pruned"]
    print(
        f"{composed.name}: {done} of {counts['all']} trials finished, {counts['pruned']} of them pruned; "
        f"{ending.before} before"
    )
    for text in ending.failed:
        print(f"failed: {text}")
    if ending.left and done < counts["all"]:
        print(f"not begun: {counts['waiting']}; {ending.left}")
    if (best := trials.Trials(composed).best()) and best.value is not None:
        print(
            f"best: {composed.metric.name} {_number(best.value)}, trial {best.number}: {trials.described(best.params)}"
        )
    print(f"report: {composed.report_command}")
    return 0 if done == counts["all"] else 1


def _trials(found: Trials, as_json: bool) -> None:
    space = list(found.search.space)
    rows: list[tuple[str, ...]] = [("trial", "status", *space, found.search.metric.name, "run")]
    for trial in found.all():
        member = next(iter(found.members(trial)), None)
        run = f"{member.target.name}/{member.target.fingerprint}" if member else ""
        status = trial.state.name.lower() + (" (no worker)" if found.lost(trial) else "")
        if as_json:
            import json

            shown = {"trial": trial.number, "status": status, "point": trial.params, "value": trial.value}
            print(json.dumps({**shown, **trial.user_attrs, "run": run}, ensure_ascii=False))
        point = (str(trial.params.get(key, "")) for key in space)
        rows.append((str(trial.number), status, *point, "" if trial.value is None else _number(trial.value), run))
    if not as_json:
        _table(rows)


def _members(composed: Ablation, as_json: bool) -> None:
    rows: list[tuple[str, ...]] = [("member", "status", *composed.factors, "seed", "run")]
    for member in composed.members:
        run = f"{member.target.name}/{member.target.fingerprint}"
        if as_json:
            import json

            shown = {"member": member.number, "status": member.status(), "levels": member.levels, "seed": member.seed}
            print(json.dumps({**shown, "run": run, "directory": str(member.target.directory)}, ensure_ascii=False))
        rows.append((str(member.number), member.status(), *member.levels.values(), str(member.seed), run))
    if not as_json:
        _table(rows)


def _submit(words: list[str]) -> int:
    usage = (
        "VERB experiment=NAME cluster=NAME [key=value ...] | sweep ablation=NAME cluster=NAME [--at-once N] [...]"
        " | sweep search=NAME cluster=NAME [--workers N] [...]"
    )
    parser = _parser("submit", usage)
    parser.add_argument("verb", choices=("prepare", "train", "evaluate", "pipeline", "sweep"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for that verb")
    parser.add_argument("--print", action="store_true", dest="show", help="check, show the calls of sbatch, and stop")
    parser.add_argument("--at-once", type=int, metavar="N", help="sweep: the most members that run at a time")
    parser.add_argument("--workers", type=int, metavar="N", help="sweep search=: elements of the array; default 4")
    parser.add_argument(
        "--retries", type=int, metavar="N", help="sweep: for a member or trial that fails or dies; default 1"
    )
    options = parser.parse_intermixed_args(words)
    if options.verb == "sweep":
        searches = any(word.startswith("search=") for word in options.overrides)
        return _submit_search(options) if searches else _submit_sweep(options)
    if (options.at_once, options.retries, options.workers) != (None, None, None):
        raise UserError("--at-once, --workers and --retries are for `athanor submit sweep`")
    name, overrides = _chosen(options.verb, options.overrides)

    from athanor.cluster import jobs, submission

    waiting: dict[str, str] = {}
    if options.verb == "pipeline":
        found, waiting = submission.prepare_pipeline(name, overrides)
    else:
        single = submission.prepare(options.verb, name, overrides)
        found = {} if single is None else {name: single}
    if not found:
        print("already done")
        return 0
    if options.show:
        for one in found.values():
            print(submission.command(one))
        return 0
    numbers = submission.send(found, waiting)
    _table([(f"job {number}", key, found[key].title if key != "report" else "") for key, number in numbers.items()])
    first = next(iter(numbers.values()))
    log = _short(f"{next(iter(found.values())).experiment.config['paths']['runs']}/{jobs.FOLDER}/{first}.txt")
    print(f"follow:  athanor jobs  |  tail -F {log}\nend:     athanor cancel {first}")
    return 0


def _submit_search(options: argparse.Namespace) -> int:
    chosen, overrides = _named(options.overrides, "submit sweep", "search")
    if options.at_once is not None:
        raise UserError("a search has --workers N, all of which run at once")

    from athanor.cluster import arrays, jobs, submission

    workers, retries = (
        given if given is not None else least for given, least in ((options.workers, 4), (options.retries, 1))
    )
    array = arrays.prepare_search(chosen["search"], overrides, workers=workers, retries=retries)
    composed = array.search
    if not array.jobs:
        queued = len(array.queued)
        print(
            f"{queued} workers are in the queue already, {array.unfinished} trials to go" if queued else "already done"
        )
        print(f"follow:  athanor jobs search/{composed.name}" if queued else f"report:  {composed.report_command}")
        return 0
    if options.show:
        for one in array.jobs.values():
            print(submission.command(one))
        return 0
    numbers = submission.send(array.jobs, array.waiting)
    shown = numbers | {"workers": f"{numbers['workers']}_[{jobs.ranges(range(1, array.workers + 1))}]"}
    _table([(f"job {shown[key]}", key) for key in numbers])
    log = f"{composed.root}/{jobs.FOLDER}/{numbers['workers']}_1.txt"
    print(f"follow:  athanor jobs search/{composed.name}  |  tail -F {_short(log)}")
    print(f"end:     athanor cancel search/{composed.name}")
    return 0


def _submit_sweep(options: argparse.Namespace) -> int:
    chosen, overrides = _named(options.overrides, "submit sweep", "ablation")

    from athanor.cluster import arrays, jobs, submission

    retries = 1 if options.retries is None else options.retries
    array = arrays.prepare(chosen["ablation"], overrides, at_once=options.at_once, retries=retries)
    composed = array.ablation
    counts = f"{len(array.finished)} of {len(composed)} members are finished"
    if not array.jobs:
        print("already done" if not array.queued else f"{counts}, the others are in the queue already")
        print(f"follow:  athanor jobs {composed.name}" if array.queued else f"report:  {composed.report_command}")
        return 0
    if options.show:
        for one in array.jobs.values():
            print(submission.command(one))
        return 0
    numbers = submission.send(array.jobs, array.waiting)
    shown = numbers | {"members": array.elements(numbers["members"])}
    _table([(f"job {shown[key]}", key) for key in numbers])
    if array.finished or array.queued:
        print(f"{counts}, {len(array.queued)} in the queue already")
    log = f"{composed.first.config['paths']['runs']}/{jobs.FOLDER}/{numbers['members']}_{array.sent[0].number}.txt"
    print(f"follow:  athanor jobs {composed.name}  |  tail -F {_short(log)}\nend:     athanor cancel {composed.name}")
    return 0


def _jobs(words: list[str]) -> int:
    parser = _parser("jobs", "[NAME]")
    parser.add_argument("name", nargs="?", default="", help="only jobs of runs or ablations whose name holds this")
    parser.add_argument("--all", action="store_true", help="those that have left the queue too, not only the last ten")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each job")
    options = parser.parse_args(words)

    from athanor.cluster import jobs
    from athanor.progress import clock

    found = [job for job in jobs.listed() if options.name in job.name or options.name in job.ablation]
    ended = [job for job in found if not job.live]
    shown = found if options.all else [*ended[-10:], *(job for job in found if job.live)]
    if options.json:
        for job in shown:
            print(job.as_json())
        return 0
    if not shown:
        print(f"no jobs in {_short(catalog.runs_root())}")
        return 0
    rows = [("job", "run", "member", "state", "restarts", "step", "loss", "needs", "has")]
    for number, alike in jobs.grouped(shown).items():
        job = alike[0]
        step = "" if job.step is None else f"{job.step}/{job.steps}" if job.steps else str(job.step)
        state = f"{job.state} ({job.reason})" if job.reason else job.state
        loss, needs = "" if job.loss is None else _number(job.loss), "" if job.needs is None else clock(job.needs)
        run, member = f"{job.name}/{job.fingerprint[:8]}".rstrip("/"), job.member
        if len(alike) > 1:
            run, member = f"ablations/{job.ablation}" if job.ablation else job.name, f"{len(alike)} members"
        rows.append((number, run, member, state, str(job.restarts or ""), step, loss, needs, job.has))
    _table(rows if any(job.member for job in shown) else [(*row[:2], *row[3:]) for row in rows])
    for job in shown:
        if job.live or job.state not in ("COMPLETED", "FINISHED"):
            for line in job.tail:
                print(f"{job.id}: {line[:160]}")
    return 0


def _cancel(words: list[str]) -> int:
    parser = _parser("cancel", "JOB_OR_RUN [...]")
    parser.add_argument(
        "jobs", nargs="+", help="a job's number (of an array, of its element 12_3), of a run its folder, experiment or "
        "beginning, or an ablation",
    )  # fmt: skip
    options = parser.parse_args(words)

    from athanor.cluster import jobs

    for number, alike in jobs.grouped(jobs.cancel(options.jobs)).items():
        print(f"cancelled {number}  {alike[0].name}")
    return 0


def _runs(words: list[str]) -> int:
    parser = _parser("runs", "[NAME]")
    parser.add_argument("name", nargs="?", default="", help="only runs whose name holds this")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each run")
    options = parser.parse_args(words)

    from athanor.runs.run import list_runs

    runs = [run for run in list_runs() if options.name in run.name]
    if options.json:
        import json

        for run in runs:
            shown = {"name": run.name, "fingerprint": run.fingerprint, "status": run.status, "metrics": run.metrics}
            print(json.dumps({**shown, "started": run.manifest["started"], "directory": str(run.directory)}))
        return 0
    if not runs:
        which = f" named like {options.name!r}" if options.name else ""
        print(f"no runs{which} in {_short(catalog.runs_root())}")
        return 0
    rows = [("run", "fingerprint", "status", "age", "metric", "")]
    _table(rows + [(run.name, run.fingerprint, run.status, run.age, *_metric(run)) for run in runs])
    return 0


def _wandb_sync(words: list[str]) -> int:
    parser = _parser("wandb-sync", "[RUN ...] [--dry-run]")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"only these; default all: {RUN_HELP}")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    options = parser.parse_args(words)

    from athanor.cluster import wandb_sync

    folders, going = wandb_sync.kept(options.runs)
    for run in going:
        print(f"{run.id} is running; send it when it has ended")
    if not folders:
        print("nothing to send")
        return 0
    for folder in folders:
        print(_short(folder))
    if options.dry_run:
        return 0
    left = wandb_sync.send(folders)
    print(f"sent {len(folders) - len(left)} of {len(folders)}")
    return 1 if left else 0


def _dashboard(words: list[str]) -> int:
    parser = _parser("dashboard", "[FOLDER] [--port N]")
    parser.add_argument("folder", nargs="?", help="a folder of runs; default $ATHANOR_RUNS, else runs")
    parser.add_argument("--port", type=int, default=8700, metavar="N", help="0 for any that is free; default 8700")
    options = parser.parse_args(words)

    import secrets
    from pathlib import Path

    root = Path(options.folder).resolve() if options.folder else catalog.runs_root()
    if options.folder and not root.is_dir():
        raise UserError(f"there is no folder {options.folder}")
    try:
        from athanor.dashboard import server
    except ModuleNotFoundError as error:
        raise UserError(f"{error}; the dashboard needs an extra: pip install 'athanor[dashboard]'") from None

    opened, token = server.listen(options.port), secrets.token_urlsafe(24)
    print(f"http://{server.HOST}:{opened.getsockname()[1]}/?token={token}", flush=True)
    try:
        server.serve(root, opened, token)
    except KeyboardInterrupt:  # the way to end it
        print()
    return 0


def _scaling(words: list[str]) -> int:
    parser = _parser("scaling", "RUN [...] | FILE.csv")
    sources = f"a CSV file of parameters, tokens and loss, or runs: {RUN_HELP}; FOLDER/ for all trainings below"
    parser.add_argument("sources", nargs="+", help=sources)
    parser.add_argument("--compute", type=float, action="append", default=[], metavar="FLOPS", help="budgets to spend")
    parser.add_argument("--samples", type=int, default=200, metavar="N", help="of the bootstrap; default 200")
    parser.add_argument("-o", "--output", help="where to write the page; default: scaling.html in the folder of runs")
    parser.add_argument("--json", action="store_true", help="print JSON and write no page")
    options = parser.parse_args(words)
    if options.samples < 20 or any(not 0 < budget < float("inf") for budget in options.compute):
        raise UserError("--samples must be at least 20, and --compute positive")

    from athanor.scaling import law, points, show

    fitted = law.fit(points.read(options.sources), samples=options.samples)
    if options.json:
        print(show.as_json(fitted, options.compute))
        return 0
    _table(show.rows(fitted, options.compute))

    import shlex
    from pathlib import Path

    from athanor.report import scaling as page

    path = Path(options.output) if options.output else catalog.runs_root() / "scaling.html"
    print(_short(page.write(fitted, options.compute, shlex.join(["athanor", "scaling", *words]), path)))
    return 0


def _lineage(words: list[str]) -> int:
    parser = _parser("lineage", "RUN")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("--fresh", action="store_true", help="read every byte again, however untouched a file seems")
    parser.add_argument("--json", action="store_true", help="print the tree as JSON")
    options = parser.parse_args(words)

    from athanor.runs import lineage
    from athanor.runs.run import open_run

    tree = lineage.trace(open_run(options.run), fresh=options.fresh)
    changed = lineage.problems(tree)
    if options.json:
        import json

        print(json.dumps(tree, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        width = None if sys.stdout.isatty() else 1000
        Console(highlight=False, width=width).print(lineage.render(tree))
        print("every file is as it was" if not changed else f"{len(changed)} changed or missing:")
        for problem in changed:
            print(f"  {problem}")
    return 1 if changed else 0


def _reproduce(words: list[str]) -> int:
    parser = _parser("reproduce", "RUN | FILE.result.json [cluster=NAME ...]")
    parser.add_argument("run", help=f"a file that `athanor record` wrote, or {RUN_HELP}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of a result: how to run it")
    parser.add_argument("--anyway", action="store_true", help="a run: though raw documents or inputs have changed")
    _reproduction_options(parser)
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


def _record(words: list[str]) -> int:
    parser = _parser("record", "EXPERIMENT [--seeds N ...] [key=value ...]")
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
    print(_short(path))
    shown = record.read(path)["metrics"]
    rows = [("metric", "mean", "95% interval", "seeds")]
    for name, found in shown.items():
        interval = f"{_number(found['low'])} to {_number(found['high'])}" if found["low"] is not None else ""
        rows.append((name, _number(found["mean"]), interval, str(found["seeds"])))
    _table(rows)
    return 0


def _verify(words: list[str]) -> int:
    parser = _parser("verify", "[EXPERIMENT ...] [cluster=NAME ...]")
    parser.add_argument(
        "overrides", nargs="*", metavar="EXPERIMENT", help="only these (FOLDER/ for all below); how to run"
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, metavar="M", help="pass over results that took longer; default 30"
    )
    _reproduction_options(parser)
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
    _table([("result", "verdict", "took", ""), *((r.name, r.verdict, t, r.detail) for r, t in zip(rows, took))])
    return verify.exit_code(rows)


def _prove(words: list[str]) -> int:
    parser = _parser("prove", "experiment=NAME [strategies=A,B] [steps=N] [key=value ...]", experiments=True)
    parser.listed = "train"
    chosen, overrides = _named(
        parser.parse_intermixed_args(words).overrides, "prove", "experiment", "strategies", "steps"
    )
    if not chosen.get("steps", "4").isdigit():
        raise UserError(f"steps={chosen['steps']} must be a number")
    catalog.find(chosen["experiment"], "train")

    from athanor import config
    from athanor.runs import prove

    experiment = config.load(chosen["experiment"], overrides)
    names = chosen.get("strategies", "ddp,fsdp2,deepspeed_zero2,deepspeed_zero3").strip("[]").split(",")
    with _progress(experiment) as progress:
        result = prove.prove(experiment, [name.strip() for name in names], int(chosen.get("steps", 4)), progress)
    print(prove.table(result), end="")
    print(f"\n{result['table']}")
    return 0 if prove.holds(result) else 1


def _report(words: list[str]) -> int:
    if any(word.startswith("ablation=") for word in words):
        return _ablation_report(words)
    if any(word.startswith("search=") for word in words):
        return _search_report(words)
    parser = _parser("report", "RUN_OR_PIPELINE [-o FILE]")
    parser.add_argument("source", help=f"a pipeline's name or folder, or {RUN_HELP}")
    parser.add_argument("-o", "--output", help="where to write it; default: report.html in its folder")
    options = parser.parse_args(words)

    from pathlib import Path

    from athanor.runs.run import open_run

    name = options.source.removeprefix("experiment=")
    folders = [Path(name), catalog.runs_root() / name, catalog.runs_root() / "pipelines" / name]
    source = next((folder for folder in folders if (folder / "pipeline.json").is_file()), None)
    source = source or open_run(name).directory

    from athanor import report

    print(_short(report.write(source, Path(options.output) if options.output else source / "report.html")))
    return 0


def _ablation_report(words: list[str]) -> int:
    parser = _parser("report", "ablation=NAME [key=value ...]", experiments=True)
    chosen, overrides = _named(parser.parse_intermixed_args(words).overrides, "report", "ablation")

    from athanor.sweeps import ablation, results

    found = results.gather(ablation.load(chosen["ablation"], overrides))

    from athanor.report import ablation as page

    for level in found.levels:
        if level.verdict:
            print(f"{level.factor} {level.label}: {level.verdict}")
    for path in page.write(found, found.ablation.directory):
        print(_short(path))
    return 0


def _consolidate(words: list[str]) -> int:
    parser = _parser("consolidate", "RUN [DIRECTORY]")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("directory", nargs="?", help="where to; default a folder beside the checkpoint, with its name")
    options = parser.parse_args(words)

    from pathlib import Path

    from athanor.consolidate import consolidate

    print(_short(consolidate(options.run, Path(options.directory) if options.directory else None)))
    return 0


def _search_report(words: list[str]) -> int:
    parser = _parser("report", "search=NAME [key=value ...]", experiments=True)
    chosen, overrides = _named(parser.parse_intermixed_args(words).overrides, "report", "search")

    from athanor.sweeps import found, search, trials

    results = found.gather(trials.Trials(search.load(chosen["search"], overrides)))

    from athanor.report import search as page

    for path in page.write(results, results.search.directory):
        print(_short(path))
    if results.best:
        written = found.write_best(results)
        print(f"{_short(written)}\nbest: {results.best_line}\nagain: {results.best_command}")
    return 0


def _erase(words: list[str]) -> int:
    parser = _parser("erase", "LIST [...]")
    parser.add_argument("lists", nargs="+", metavar="LIST", help="a file with the identity of a document a line")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    options = parser.parse_args(words)

    from athanor.corpus import erase
    from athanor.progress import Progress

    with Progress() as progress:
        found = erase.erase(options.lists, catalog.runs_root(), dry=options.dry_run, progress=progress)
    if not options.dry_run:
        from athanor import pipeline
        from athanor.runs.run import open_run

        for run in (*found.documents, *found.shards):
            pipeline.data_card(open_run(run), anew=True)
    would = "would be " if options.dry_run else ""
    rows = [(run, f"{count} documents {would}erased") for run, count in found.documents.items()]
    rows += [(run, f"{would}rebuilt" if options.dry_run else f"rebuilt, {n} fewer") for run, n in found.shards.items()]
    rows += [(run, "was trained on them") for run in found.saw]
    rows += [(run, "was made of them, and is left") for run in found.left]
    _table(rows)
    if found.missing:
        print(f"{found.missing} listed identities are in no run")
    if found.documents:
        print("the raw files are untouched: before preparing them again, add the step athanor.corpus.privacy.Removed")
    return 0


def _export(words: list[str]) -> int:
    parser = _parser("export", "RUN DIRECTORY")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("directory", help="where to write config.json, the weights and the tokenizer")
    parser.add_argument("--family", help="llama, mistral, qwen2, qwen3, mixtral or gpt2; default the first that fits")
    parser.add_argument("--shard-size", type=float, default=5.0, help="the most in one file, in GB; default 5")
    options = parser.parse_args(words)
    if options.shard_size <= 0:
        raise UserError(f"--shard-size {options.shard_size} must be positive")

    from pathlib import Path

    from athanor.models.huggingface import export_run

    most = int(options.shard_size * 10**9)
    family = export_run(options.run, Path(options.directory), family=options.family, shard_bytes=most)
    print(f"{family}  {_short(Path(options.directory).resolve())}")
    return 0


# Their parts

RUN_HELP = "a run's folder, `experiment/fingerprint` or the beginning of it, or an experiment that has one run"


class _Parser(argparse.ArgumentParser):
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


def _parser(verb: str, usage: str, *, experiments: bool = False) -> _Parser:
    parser = _Parser(
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


def _reproduction_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--first", action="store_true", help="of a result: only its first seed")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, metavar="X",
        help="of a result: metrics this far apart, relative, are the same within tolerance; default 0.01",
    )  # fmt: skip


def _execution_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="compose and check, build nothing, and stop")
    parser.add_argument("--force", action="store_true", help="run though it is done already")


def _chosen(kind: str, words: Sequence[str], verb: str = "") -> tuple[str, list[str]]:
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


def _named(words: Sequence[str], verb: str, *names: str) -> tuple[dict[str, str], list[str]]:
    """What a command line names, the first of `names` being necessary, and its overrides."""
    pairs = [(name, text) for name, sign, text in (word.partition("=") for word in words) if sign and name in names]
    if [name for name, _ in pairs].count(names[0]) != 1 or len(dict(pairs)) < len(pairs):
        raise UserError(f"say one {names[0]}: `athanor {verb} {names[0]}=NAME`; `athanor sweep --help` lists them")
    return dict(pairs), [word for word in words if word.partition("=")[0] not in names]


def _with(experiment: Experiment, execution: Sequence[str]) -> Experiment:
    """An input's experiment, run the way its reader was told to run."""
    from athanor import config

    more = [text for text in config.applicable(experiment.name, execution) if text not in experiment.overrides]
    same = config.load(experiment.name, (*experiment.overrides, *more))
    return same if same.directory == experiment.directory else experiment


def _progress(experiment: Experiment) -> Progress:
    from athanor.progress import Progress
    from athanor.runs.context import rank

    return Progress(experiment.config["display"]["progress"], quiet=rank() > 0)


def _interrupted(error: BaseException) -> int:
    from athanor.runs.context import rank

    code = error.code if isinstance(error, SystemExit) else 130
    if code == 1 and isinstance(error.__context__, KeyboardInterrupt):  # as Lightning ends on Ctrl-C
        code = 130
    if code in signals.INTERRUPTED and rank() == 0:
        print("athanor: interrupted; the same command goes on", file=sys.stderr)
    return code if isinstance(code, int) else 0 if code is None else 1


def _complain(error: BaseException, text: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"athanor: {text}", file=sys.stderr)


def _metric(run: Run) -> tuple[str, str]:
    """The first of a run's metrics, which is its most telling one."""
    return next(((name, _number(value)) for name, value in run.metrics.items()), ("", ""))


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _short(path: Any) -> str:
    """A path as seen from here, if it is below."""
    from pathlib import Path

    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else str(path)


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
