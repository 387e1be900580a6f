"""The verbs about runs that are there: shown, reported on, taken out of, written elsewhere."""

from __future__ import annotations

import sys

from athanor import catalog
from athanor.cli.parts import RUN_HELP, chosen_names, first_metric, new_parser, print_table, short
from athanor.errors import UserError


def do_runs(words: list[str]) -> int:
    parser = new_parser("runs", "[NAME]")
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
        print(f"no runs{which} in {short(catalog.runs_root())}")
        return 0
    rows = [("run", "fingerprint", "status", "age", "metric", "")]
    print_table(rows + [(run.name, run.fingerprint, run.status, run.age, *first_metric(run)) for run in runs])
    return 0


def do_scaling(words: list[str]) -> int:
    parser = new_parser("scaling", "RUN [...] | FILE.csv")
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
    print_table(show.rows(fitted, options.compute))

    import shlex
    from pathlib import Path

    from athanor.report import scaling as page

    path = Path(options.output) if options.output else catalog.runs_root() / "scaling.html"
    print(short(page.write(fitted, options.compute, shlex.join(["athanor", "scaling", *words]), path)))
    return 0


def do_lineage(words: list[str]) -> int:
    parser = new_parser("lineage", "RUN")
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


def do_report(words: list[str]) -> int:
    if any(word.startswith("ablation=") for word in words):
        return _ablation_report(words)
    if any(word.startswith("search=") for word in words):
        return _search_report(words)
    parser = new_parser("report", "RUN_OR_PIPELINE [-o FILE]")
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

    print(short(report.write(source, Path(options.output) if options.output else source / "report.html")))
    return 0


def _ablation_report(words: list[str]) -> int:
    parser = new_parser("report", "ablation=NAME [key=value ...]", experiments=True)
    chosen, overrides = chosen_names(parser.parse_intermixed_args(words).overrides, "report", "ablation")

    from athanor.sweeps import ablation, results

    found = results.gather(ablation.load(chosen["ablation"], overrides))

    from athanor.report import ablation as page

    for level in found.levels:
        if level.verdict:
            print(f"{level.factor} {level.label}: {level.verdict}")
    for path in page.write(found, found.ablation.directory):
        print(short(path))
    return 0


def _search_report(words: list[str]) -> int:
    parser = new_parser("report", "search=NAME [key=value ...]", experiments=True)
    chosen, overrides = chosen_names(parser.parse_intermixed_args(words).overrides, "report", "search")

    from athanor.sweeps import found, search, trials

    results = found.gather(trials.Trials(search.load(chosen["search"], overrides)))

    from athanor.report import search as page

    for path in page.write(results, results.search.directory):
        print(short(path))
    if results.best:
        written = found.write_best(results)
        print(f"{short(written)}\nbest: {results.best_line}\nagain: {results.best_command}")
    return 0


def do_erase(words: list[str]) -> int:
    parser = new_parser("erase", "LIST [...]")
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
    print_table(rows)
    if found.missing:
        print(f"{found.missing} listed identities are in no run")
    if found.documents:
        print("the raw files are untouched: before preparing them again, add the step athanor.corpus.privacy.Removed")
    return 0


def do_consolidate(words: list[str]) -> int:
    parser = new_parser("consolidate", "RUN [DIRECTORY]")
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument("directory", nargs="?", help="where to; default a folder beside the checkpoint, with its name")
    options = parser.parse_args(words)

    from pathlib import Path

    from athanor.consolidate import consolidate

    print(short(consolidate(options.run, Path(options.directory) if options.directory else None)))
    return 0


def do_export(words: list[str]) -> int:
    parser = new_parser("export", "RUN DIRECTORY")
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
    print(f"{family}  {short(Path(options.directory).resolve())}")
    return 0
