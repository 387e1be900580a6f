"""The verbs about jobs of SLURM."""

from __future__ import annotations

import argparse

from athanor import catalog
from athanor.cli.parts import as_number, chosen_experiment, chosen_names, new_parser, print_table, short
from athanor.errors import UserError


def do_submit(words: list[str]) -> int:
    usage = (
        "VERB experiment=NAME cluster=NAME [key=value ...] | sweep ablation=NAME cluster=NAME [--at-once N] [...]"
        " | sweep search=NAME cluster=NAME [--workers N] [...]"
    )
    parser = new_parser("submit", usage)
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
    name, overrides = chosen_experiment(options.verb, options.overrides)

    from athanor.cluster import jobs, parts, submission

    waiting: dict[str, str] = {}
    if options.verb == "pipeline":
        found, waiting = submission.prepare_pipeline(name, overrides)
    elif options.verb == "prepare":
        found = parts.prepare(name, overrides)
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
    print_table(
        [(f"job {number}", key, found[key].title if key != "report" else "") for key, number in numbers.items()]
    )
    first = next(iter(numbers.values()))
    log = short(f"{next(iter(found.values())).experiment.config['paths']['runs']}/{jobs.FOLDER}/{first}.txt")
    print(f"follow:  athanor jobs  |  tail -F {log}\nend:     athanor cancel {first}")
    return 0


def _submit_search(options: argparse.Namespace) -> int:
    chosen, overrides = chosen_names(options.overrides, "submit sweep", "search")
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
    print_table([(f"job {shown[key]}", key) for key in numbers])
    log = f"{composed.root}/{jobs.FOLDER}/{numbers['workers']}_1.txt"
    print(f"follow:  athanor jobs search/{composed.name}  |  tail -F {short(log)}")
    print(f"end:     athanor cancel search/{composed.name}")
    return 0


def _submit_sweep(options: argparse.Namespace) -> int:
    chosen, overrides = chosen_names(options.overrides, "submit sweep", "ablation")

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
    print_table([(f"job {shown[key]}", key) for key in numbers])
    if array.finished or array.queued:
        print(f"{counts}, {len(array.queued)} in the queue already")
    log = f"{composed.first.config['paths']['runs']}/{jobs.FOLDER}/{numbers['members']}_{array.sent[0].number}.txt"
    print(f"follow:  athanor jobs {composed.name}  |  tail -F {short(log)}\nend:     athanor cancel {composed.name}")
    return 0


def do_jobs(words: list[str]) -> int:
    parser = new_parser("jobs", "[NAME]")
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
        print(f"no jobs in {short(catalog.runs_root())}")
        return 0
    rows = [("job", "run", "member", "state", "restarts", "step", "loss", "needs", "has")]
    for number, alike in jobs.grouped(shown).items():
        job = alike[0]
        step = "" if job.step is None else f"{job.step}/{job.steps}" if job.steps else str(job.step)
        state = f"{job.state} ({job.reason})" if job.reason else job.state
        loss, needs = "" if job.loss is None else as_number(job.loss), "" if job.needs is None else clock(job.needs)
        run, member = f"{job.name}/{job.fingerprint[:8]}".rstrip("/"), job.member
        if len(alike) > 1:
            run, member = f"ablations/{job.ablation}" if job.ablation else job.name, f"{len(alike)} members"
        rows.append((number, run, member, state, str(job.restarts or ""), step, loss, needs, job.has))
    print_table(rows if any(job.member for job in shown) else [(*row[:2], *row[3:]) for row in rows])
    for job in shown:
        if job.live or job.state not in ("COMPLETED", "FINISHED"):
            for line in job.tail:
                print(f"{job.id}: {line[:160]}")
    return 0


def do_cancel(words: list[str]) -> int:
    parser = new_parser("cancel", "JOB_OR_RUN [...]")
    parser.add_argument(
        "jobs", nargs="+", help="a job's number (of an array, of its element 12_3), of a run its folder, experiment or "
        "beginning, or an ablation",
    )  # fmt: skip
    options = parser.parse_args(words)

    from athanor.cluster import jobs

    for number, alike in jobs.grouped(jobs.cancel(options.jobs)).items():
        print(f"cancelled {number}  {alike[0].name}")
    return 0
