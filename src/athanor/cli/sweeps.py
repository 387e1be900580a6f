"""`athanor sweep`: the members of an ablation, the trials of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from athanor.cli.experiments import rehearse
from athanor.cli.parts import Parser, as_number, chosen_names, new_parser, print_table, progress_for, short
from athanor.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from athanor.sweeps.ablation import Ablation
    from athanor.sweeps.search import Search
    from athanor.sweeps.trials import Trials


def do_sweep(words: list[str]) -> int:
    if any(word.startswith("search=") for word in words):
        return _search(words)
    parser = _new_parser("ablation=NAME [member=K] [key=value ...] | search=NAME [worker=K] [key=value ...]", "member")
    options = parser.parse_intermixed_args(words)
    chosen, overrides = chosen_names(options.overrides, "sweep", "ablation", "member", "backend")

    from athanor.sweeps import ablation, local, members

    composed = ablation.load(chosen["ablation"], overrides)
    if "backend" in chosen:
        return _on_wandb(composed, chosen, options)
    if options.listed:
        _list_members(composed, options.json)
        return 0
    if options.check:
        composed.validate(lambda member: rehearse(member.experiment))
        print(f"ok {composed.name}: {len(composed)} members, {len(composed.cells)} for each of seeds {composed.seeds}")
        return 0
    if options.inputs or "member" in chosen:
        if not chosen.get("member", "1").isdigit():
            raise UserError(f"member={chosen['member']} must be a number from 1 to {len(composed)}")
        member = composed.member(int(chosen.get("member", 1)))

        def work() -> None:
            with progress_for(member.experiment) as progress:
                if options.inputs:
                    made = members.make_inputs(composed, progress)
                else:
                    made = [run for run in [members.make_member(member, progress)] if run]
            for run in made:
                print(f"{run.id}  {run.status}  {short(run.directory)}")

        members.with_retries(work, ["sweep", *words], options.retries)
        return 0
    with progress_for(composed.first) as progress:
        ending = local.sweep(composed, workers=options.workers, retries=options.retries, progress=progress)
    done = len(ending.before) + len(ending.finished)
    print(f"{composed.name}: {done} of {len(composed)} members finished, {len(ending.before)} of them before")
    for member in ending.failed:
        print(f"failed: {member.number}, {member.title}; {short(composed.directory / 'log' / f'{member.number}.txt')}")
    if ending.left:
        print(f"not begun: {len(ending.left)}; {ending.reason}")
    print(f"report: {composed.report_command}")
    return 0 if done == len(composed) else 1


def _new_parser(usage: str, one: str) -> Parser:
    """For a sweep of so called ones."""
    parser = new_parser("sweep", usage, experiments=True)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=f"{one}s at a time; default 1")
    parser.add_argument("--retries", type=int, default=1, metavar="N", help=f"for a {one} that fails; default 1")
    parser.add_argument("--list", action="store_true", dest="listed", help=f"show the {one}s and stop")
    parser.add_argument("--json", action="store_true", help="with --list: a line of JSON for each")
    parser.add_argument("--inputs", action="store_true", help=f"make what all {one}s read and stop")
    parser.add_argument("--check", action="store_true", help="compose and check, build nothing, and stop")
    return parser


def _search(words: list[str]) -> int:
    parser = _new_parser("search=NAME [worker=K | trial=K] [key=value ...]", "trial")
    options = parser.parse_intermixed_args(words)
    chosen, overrides = chosen_names(options.overrides, "sweep", "search", "worker", "trial", "backend")
    for key in ("worker", "trial"):
        if key in chosen and not chosen[key].isdigit():
            raise UserError(f"{key}={chosen[key]} must be a number")

    from athanor.sweeps import search

    composed = search.load(chosen["search"], overrides)
    if "backend" in chosen:
        return _on_wandb(composed, chosen, options)
    if options.check:
        composed.validate(lambda member: rehearse(member.experiment))
        ends = ", ".join(composed.space)
        print(
            f"ok {composed.name}: {composed.trials} trials of {composed.base} over {ends}\n{short(composed.directory)}"
        )
        return 0

    from athanor.sweeps import searching, trials

    if options.listed:
        _list_trials(trials.Trials(composed), options.json)
        return 0
    if "worker" in chosen:
        ended = searching.work(composed, retries=options.retries, say=lambda text: print(text, flush=True))
        print(f"{composed.name}: {ended} trials ended here, and none is left to take")
        return 0
    if "trial" in chosen or options.inputs:
        with progress_for(composed.first) as progress:
            made = (
                searching.make_inputs(composed, progress)
                if options.inputs
                else searching.make_trial(composed, int(chosen["trial"]), progress)
            )
        for run in made:
            print(f"{run.id}  {run.status}  {short(run.directory)}")
        return 0
    with progress_for(composed.first) as progress:
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
        value = f"{composed.metric.name} {as_number(best.value)}"
        print(f"best: {value}, trial {best.number}: {trials.described(best.params)}")
    print(f"report: {composed.report_command}")
    return 0 if done == counts["all"] else 1


def _on_wandb(composed: Ablation | Search, chosen: dict[str, str], options: Namespace) -> int:
    """Be an agent of the sweep on Weights & Biases; with --check, show its definition."""
    if chosen["backend"] != "wandb":
        raise UserError(f"there is no backend {chosen['backend']!r}; say `backend=wandb`, or nothing for athanor's own")
    if len(chosen) > 2 or options.workers > 1 or options.listed or options.inputs:
        raise UserError("with backend=wandb W&B hands out the trials: give the command once for each worker, no more")

    from athanor.sweeps import wandb_sweep

    if not options.check:
        wandb_sweep.require_server()
    composed.validate()
    if options.check:
        import yaml

        print(yaml.safe_dump(wandb_sweep.definition(composed), sort_keys=False, allow_unicode=True), end="")
        return 0
    taken = wandb_sweep.agent(composed)
    print(f"{composed.name}: {taken} trials ended here, and W&B has none left")
    return 0


def _list_members(composed: Ablation, as_json: bool) -> None:
    rows: list[tuple[str, ...]] = [("member", "status", *composed.factors, "seed", "run")]
    for member in composed.members:
        run = f"{member.target.name}/{member.target.fingerprint}"
        if as_json:
            import json

            shown = {"member": member.number, "status": member.status(), "levels": member.levels, "seed": member.seed}
            print(json.dumps({**shown, "run": run, "directory": str(member.target.directory)}, ensure_ascii=False))
        rows.append((str(member.number), member.status(), *member.levels.values(), str(member.seed), run))
    if not as_json:
        print_table(rows)


def _list_trials(found: Trials, as_json: bool) -> None:
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
        rows.append((str(trial.number), status, *point, "" if trial.value is None else as_number(trial.value), run))
    if not as_json:
        print_table(rows)
