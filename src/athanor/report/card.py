"""The data card of a run that prepares data, and of all the data it was made from: card.html and card.md in its folder.

For those who are asked what is in their corpus: sources and licences, what every step kept and dropped with samples,
languages, lengths, duplicates, personal data, contamination, the mixture, the tokenizer, and the hash of every file.
All of it is read from the runs' own accounts; what an account lacks, the card leaves out.
"""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from athanor.report import formats
from athanor.report.charts import Line, line_chart
from athanor.report.facts import ROLE_NAMES, cleaning_of
from athanor.report.frame import fill
from athanor.report.gather import DATA_ROLES, RunView, gather
from athanor.report.tables import LANGUAGES
from athanor.runs.files import write_atomic

HTML, MARKDOWN = "card.html", "card.md"
MOST_FILES = 60  # raw files listed one by one
TONES = ("ppo", "sft", "dpo", "reward", "pretraining", "data")
FINDINGS = re.compile("[A-Z_]+")  # how Privacy names what it finds


class Table(NamedTuple):
    """words: columns that hold text, besides the first."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    words: tuple[str, ...] = ()


class Part(NamedTuple):
    """What the card says of one run."""

    heading: str
    id: str
    intro: str = ""
    cleaning: dict[str, Any] | None = None
    tables: tuple[Table, ...] = ()
    mixtures: tuple[dict[str, Any], ...] = ()
    histograms: tuple[tuple[str, list[tuple[int, int, float]]], ...] = ()
    panels: tuple[tuple[str, str, Markup, list[tuple[str, str, str]]], ...] = ()  # title, unit, drawing, legend


def write(directory: Path) -> list[Path]:
    """The card of the finished run in a directory, in two forms; their paths, none where there is nothing to say."""
    context = describe(directory)
    if not context["parts"]:
        return []
    write_atomic(directory / HTML, fill("card.html", context))
    write_atomic(directory / MARKDOWN, markdown(context))
    return [directory / HTML, directory / MARKDOWN]


def describe(directory: Path) -> dict[str, Any]:
    """What both forms are filled with."""
    gathered = gather(directory)
    own = gathered.runs[-1]
    made = [run for run in gathered.runs if run.role in DATA_ROLES or run is own]
    files = [
        {"name": name, "of": f"{run.name}/{run.fingerprint[:8]}", **entry}
        for run in reversed(made)
        for name, entry in (run.manifest.get("outputs") or {}).items()
    ]
    raw = {
        (Path(file["path"]).name, file["sha256"]): {
            "name": Path(file["path"]).name,
            "of": f"input {parent.name}",
            **file,
        }
        for run in made
        for parent in run.parents
        for file in parent.files
    }
    parts = [part for run in made if (part := part_of(run))]
    documents = [run for run in made if run.read("cleaning.json")]
    return {
        "name": own.name,
        "id": f"{own.name}/{own.fingerprint}",
        "started": own.manifest.get("started"),
        "lede": lede(documents),
        "figures": figures(made),
        "parts": parts,
        "files": [*files, *list(raw.values())[:MOST_FILES]],
        "more_files": max(0, len(raw) - MOST_FILES),
        "command": shlex.join(["athanor", own.kind, f"experiment={own.name}", *map(str, own.manifest["overrides"])]),
    }


def lede(documents: list[RunView]) -> str:
    accounts = [run.read("cleaning.json") for run in documents]
    sources = [name for account in accounts for name in account["sources"]]
    licences = dict.fromkeys(
        source.get("licence") or "unknown" for account in accounts for source in account["sources"].values()
    )
    if not sources:
        return "Made without raw documents."
    return f"From {formats.series(sources)}. Licences: {formats.series(list(licences))}."


def figures(made: list[RunView]) -> list[tuple[str, str, str]]:
    found = []
    for run in made:
        if account := run.read("cleaning.json"):
            start = sum(source["documents"] for source in account["sources"].values())
            end = sum(language["documents"] for language in account["languages"].values())
            size = sum(language["bytes"] for language in account["languages"].values())
            found.append(
                (formats.count(end), "documents", f"from {formats.count(start)} read; {formats.size(size)} of text")
            )
        if account := run.read("tokenizer.json"):
            rates = [f"{rate:.2f} {code}" for code, rate in (account.get("bytes_per_token") or {}).items()]
            found.append((formats.whole(account["vocabulary_size"]), "pieces", f"bytes a token: {', '.join(rates)}"))
        if account := run.read("shards.json"):
            tokens = sum(split["tokens"] for split in account["splits"].values())
            held = account["splits"].get("validation", {}).get("tokens", 0)
            found.append((formats.count(tokens), "tokens", f"{formats.count(held)} of them held out"))
    return found


def part_of(run: RunView) -> Part | None:
    heading, identity = ROLE_NAMES.get(run.role, run.role.capitalize()), f"{run.name}/{run.fingerprint[:8]}"
    if account := run.read("cleaning.json"):
        return documents_part(heading, identity, account, cleaning_of(run), run)
    if account := run.read("tokenizer.json"):
        return Part(heading, identity, tokenizer_intro(account), tables=(tokenizer_table(account),))
    if account := run.read("sweep.json"):
        return sweep_part(identity, account)
    if account := run.read("shards.json"):
        rows = [
            [
                split,
                *(formats.whole(found.get(key)) for key in ("documents", "tokens")),
                formats.size(found.get("bytes")),
            ]
            for split, found in account["splits"].items()
        ]
        table = Table("Splits", ["Split", "Documents", "Tokens", "Text"], rows)
        return Part(heading, identity, f"Token ids as {account['dtype']}.{erased(run)}", tables=(table,))
    return None


def documents_part(
    heading: str, identity: str, account: dict[str, Any], cleaning: dict[str, Any] | None, run: RunView
) -> Part:
    steps = account["steps"]
    tables = [sources_table(account["sources"]), languages_table(account["languages"])]
    for title, note, chosen, counts in (
        ("Duplicates", "", lambda step: "duplicates" in step["name"] or "passages" in step["name"], lambda what: True),
        (
            "Personal data",
            "Found and replaced by placeholders.",
            lambda step: step["name"] == "privacy",
            lambda what: FINDINGS.fullmatch(what) or what == "documents changed",
        ),
        (
            "Contamination",
            "Shared with evaluation sets.",
            lambda step: step["name"] == "contamination",
            lambda what: True,
        ),
    ):
        rows = [
            [step["name"], what, formats.whole(n)]
            for step in filter(chosen, steps)
            for what, n in [*((f"dropped: {why}", n) for why, n in step["dropped"].items()), *step["counts"].items()]
            if what.startswith("dropped") or counts(what)
        ]
        if rows:
            tables.append(Table(title, ["Step", "What", "Count"], rows, note, words=("What",)))
    clusters = [
        [step["name"], formats.whole(int(size)), formats.whole(number)]
        for step in steps
        for size, number in step.get("details", {}).get("clusters", {}).items()
    ]
    if clusters:
        note = "Documents that are alike, the one that stays among them."
        tables.append(Table("Duplicate clusters", ["Step", "Documents in a cluster", "Clusters"], clusters, note))
    mixtures = []
    for step in steps:
        if mixture := step.get("details", {}).get("mixture"):
            domains = [{"name": name, **found} for name, found in mixture["domains"].items()]
            shares = [found[key] for found in domains for key in ("share_before", "share_after", "share_wanted")]
            domains.sort(key=lambda domain: -domain["share_before"])
            mixtures.append(mixture | {"domains": domains, "most": max(shares, default=1) or 1})
            tables.append(mixture_table(mixture, domains))
        if found := step.get("details", {}).get("classifier"):
            rows = [[label, formats.whole(n)] for label, n in found["examples"].items()]
            right = formats.measure(found["accuracy"], "fraction")
            note = f"Right on {right} of {found['held_out']:,} held-out examples."
            tables.append(Table("Classifier", ["Label", "Examples"], rows, note))
    return Part(
        heading,
        identity,
        erased(run).strip(),
        cleaning,
        tuple(tables),
        tuple(mixtures),
        tuple(
            (LANGUAGES.get(code, code), histogram(found["characters"]))
            for code, found in account["languages"].items()
            if found.get("characters")
        ),
    )


def erased(run: RunView) -> str:
    gone = sum(entry["documents"] for entry in run.manifest.get("erased", []))
    return f" {gone:,} documents were erased on request, and the samples with them." if gone else ""


def sources_table(sources: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [
            name,
            found.get("licence") or "unknown",
            formats.whole(found["documents"]),
            formats.size(found["bytes"]),
            formats.whole(kept["documents"]) if (kept := found.get("kept")) else formats.MISSING,
            formats.size(kept["bytes"]) if kept else formats.MISSING,
            ", ".join(f"{n:,} {why}" for why, n in (found.get("skipped") or {}).items()) or formats.MISSING,
        ]
        for name, found in sources.items()
    ]
    columns = ["Source", "Licence", "Documents", "Size", "Kept", "Size kept", "Skipped"]
    return Table("Sources", columns, rows, words=("Licence", "Skipped"))


def languages_table(languages: dict[str, dict[str, Any]]) -> Table:
    total = sum(found["bytes"] for found in languages.values()) or 1
    rows = [
        [
            LANGUAGES.get(code, code),
            formats.whole(found["documents"]),
            formats.size(found["bytes"]),
            formats.measure(found["bytes"] / total, "fraction"),
        ]
        for code, found in sorted(languages.items(), key=lambda pair: -pair[1]["bytes"])
    ]
    return Table("Languages", ["Language", "Documents", "Size", "Share of bytes"], rows)


def mixture_table(mixture: dict[str, Any], domains: list[dict[str, Any]]) -> Table:
    unit = mixture["unit"]
    rows = [
        [
            str(domain["name"]),
            *(formats.whole(domain[key]) for key in ("documents", "before", "after")),
            *(formats.measure(domain[key], "fraction") for key in ("share_before", "share_wanted", "share_after")),
            f"{domain['epochs']:.2f}",
        ]
        for domain in domains
    ]
    columns = [mixture["by"].capitalize(), "Documents", f"{unit.capitalize()} before", "After"]
    columns += ["Share before", "Wanted", "Share after", "Epochs"]
    return Table("Mixture in numbers", columns, rows)


def tokenizer_intro(account: dict[str, Any]) -> str:
    exact = account.get("round_trip")
    restored = f" {formats.measure(exact, 'fraction')} of texts come back exactly." if exact is not None else ""
    extended = account.get("extended_from")
    added = f", the first {extended:,} those of the tokenizer that was extended" if extended else ""
    return (
        f"{account['vocabulary_size']:,} pieces by {account.get('model_type', 'an unknown method')}{added}.{restored}"
    )


TOKENIZER = {
    "bytes_per_token": "Bytes a token",
    "bytes_before": "Before it was extended",
    "fertility": "Tokens a word",
    "as_bytes": "Characters written as bytes",
    "trained_on": "Trained on",
}


def tokenizer_table(account: dict[str, Any]) -> Table:
    before = (account.get("before") or {}).get("bytes_per_token")
    account = account | {"bytes_before": before}
    known = {key: label for key, label in TOKENIZER.items() if account.get(key)}
    shown = {
        "trained_on": formats.size,
        "as_bytes": lambda value: formats.measure(value, "fraction"),
    }
    codes = list(dict.fromkeys(code for key in known for code in account[key]))
    rows = [
        [LANGUAGES.get(code, code), *(shown.get(key, formats.number)(account[key].get(code)) for key in known)]
        for code in codes
    ]
    return Table("By language", ["Language", *known.values()], rows)


def sweep_part(identity: str, account: dict[str, Any]) -> Part:
    found = account["tokenizers"]
    codes = list(dict.fromkeys(code for one in found for code in one["bytes_per_token"]))
    rows = []
    for one in found:
        for code in one["bytes_per_token"]:
            rows.append(
                [
                    f"{one['model_type']} {one['vocabulary_size']:,}",
                    LANGUAGES.get(code, code),
                    *(f"{one[key][code]:.3f}" for key in ("bytes_per_token", "fertility")),
                    f"{100 * one['as_bytes'][code]:.3f}%",
                    formats.measure(one["round_trip"], "fraction"),
                ]
            )
    panels: list[Any] = []
    for key, title in (
        ("bytes_per_token", "Bytes a token"),
        ("fertility", "Tokens a word"),
        ("as_bytes", "Written as bytes"),
    ):
        lines: list[Line] = []
        for method in dict.fromkeys(one["model_type"] for one in found):
            own = sorted((one for one in found if one["model_type"] == method), key=lambda one: one["vocabulary_size"])
            for code in codes:
                sizes, values = [one["vocabulary_size"] for one in own], [one[key].get(code, 0) for one in own]
                label = f"{LANGUAGES.get(code, code)}, {method}"
                lines.append(Line(label, TONES[len(lines) % len(TONES)], sizes, values, "plain"))
        panels.append((title, "by pieces", line_chart(lines), [(line.label, line.tone, "") for line in lines]))
    columns = ["Tokenizer", "Language", "Bytes a token", "Tokens a word", "Written as bytes", "Restored exactly"]
    held = account["held_out"]
    note = f"Measured on {held['documents']:,} documents ({formats.size(held['bytes'])}) that none was trained on. "
    note += "A Chinese character counts as a word."
    return Part(
        "Vocabulary sweep",
        identity,
        note,
        None,
        (Table("Tokenizers", columns, rows, words=("Language",)),),
        panels=tuple(panels),
    )


def histogram(lengths: dict[str, int]) -> list[tuple[int, int, float]]:
    """(lower bound, documents, of the highest bar) of every power of two from the shortest to the longest."""
    counts = {int(low): n for low, n in lengths.items()}
    low, most, bars = min(counts), max(counts.values()), []
    while low <= max(counts):
        bars.append((low, counts.get(low, 0), counts.get(low, 0) / most))
        low *= 2
    return bars


def markdown(context: dict[str, Any]) -> str:
    lines = [f"# Data card of {context['name']}", "", escape(context["lede"]), ""]
    lines += [f"- **{value}** {what} ({detail})" for value, what, detail in context["figures"]]
    for part in context["parts"]:
        lines += ["", f"## {part.heading} `{part.id}`", "", *([part.intro, ""] if part.intro else [])]
        for table in part.tables:
            lines += [f"### {table.title}", "", *([table.note, ""] if table.note else []), *grid(table), ""]
            if table.title == "Sources" and part.cleaning:
                lines += steps_in_words(part.cleaning)
        for language, bars in part.histograms:
            rows = [[f"{low:,} to {2 * low - 1:,}", formats.whole(n), "█" * round(30 * v)] for low, n, v in bars]
            lines += [f"### Lengths, {language}", "", *grid(Table("", ["Characters", "Documents", ""], rows)), ""]
    rows = [[file["name"], file["of"], formats.size(file["bytes"]), f"`{file['sha256']}`"] for file in context["files"]]
    lines += ["", "## Files and hashes", "", *grid(Table("", ["File", "Of", "Size", "SHA-256"], rows))]
    if context["more_files"]:
        lines += ["", f"and {context['more_files']:,} more raw files, in the manifests."]
    return "\n".join([*lines, "", f"Made by `{context['command']}`.", ""])


def steps_in_words(cleaning: dict[str, Any]) -> list[str]:
    rows = [
        [step["name"], formats.whole(step["in"]), formats.whole(step["out"]),
         "; ".join(f"{n:,} {why}" for why, n, _ in step["dropped"]) or "nothing dropped"]
        for step in cleaning["steps"]
    ]  # fmt: skip
    lines = ["### What each step kept", "", *grid(Table("", ["Step", "In", "Out", "Dropped"], rows)), ""]
    for step in cleaning["steps"]:
        for why, _, samples in step["dropped"]:
            if samples:
                shown = formats.shorten(" ".join(formats.tidy(samples[0]).split()), 160)
                lines += [f"- {step['name']}, {why}: “{escape(shown)}”"]
    return [*lines, ""]


def grid(table: Table) -> list[str]:
    head = [table.columns, ["---"] * len(table.columns)]
    return [f"| {' | '.join(escape(str(value)) for value in row)} |" for row in [*head, *table.rows]]


def escape(text: str) -> str:
    """For a cell: no markup, no new line."""
    return re.sub(r"([|<>\[\]])", r"\\\1", " ".join(text.split()))
