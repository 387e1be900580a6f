"""What the evaluations say: models x metrics, differences to the SFT model, breakdowns, samples, findings in words."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from athanor.evaluation.statistics import Interval, paired_difference
from athanor.report.formats import measure
from athanor.report.gather import Gathered, RunView

LANGUAGES = {"en": "English", "zh": "Chinese"}


class Metric(NamedTuple):
    label: str
    meaning: str
    better: str  # "higher", "lower" or "none": no direction is good in itself


METRICS = {
    "exact_match": Metric("Exact match", "greedy answers equal to the right one", "higher"),
    "reward": Metric("Learned reward", "mean score of the model's own answers under the reward model", "higher"),
    "kl_to_reference": Metric("KL to reference", "nats a token, on the model's own answers", "none"),
    "kl_of_response": Metric("KL of a response", "nats a response, on the model's own answers", "none"),
    "implicit_preference_accuracy": Metric(
        "Prefers the better answer", "held-out pairs whose chosen answer has the higher log-probability", "higher"
    ),
    "bits_per_byte": Metric("Bits per byte", "validation text; comparable across tokenizers", "lower"),
    "loss_per_token": Metric("Loss per token", "validation text, nats", "lower"),
    "preference_accuracy": Metric(
        "Pair accuracy", "held-out pairs whose chosen answer has the higher reward", "higher"
    ),
    "length_baseline_accuracy": Metric(
        "Longer-is-better baseline", "pairs won by answer length alone, ties half", "none"
    ),
}


class Cell(NamedTuple):
    """One measured value, and how it differs from the baseline model's on the same items."""

    value: float
    low: float
    high: float
    n: int
    unit: str | None
    difference: Interval | None = None
    verdict: str = ""  # in words; empty without a baseline
    tone: str = ""  # "good", "bad" or ""
    contamination: dict | None = None  # {"share", "judged", "clean": {"value", ...} or None}


class Column(NamedTuple):
    metric: str
    label: str
    meaning: str
    unit: str | None
    slice: dict


class Row(NamedTuple):
    run: RunView
    is_baseline: bool
    cells: list[Cell | None]


def rows_of(run: RunView) -> list[dict]:
    """All metric records of a model, from each of its evaluations; the first record of a (name, slice) counts."""
    found: dict[tuple, dict] = {}
    for evaluation in run.evaluations:
        for record in evaluation.results.get("metrics") or []:
            if isinstance(record, dict) and isinstance(record.get("value"), (int, float)):
                bounds = {side: float("nan") if record.get(side) is None else record[side] for side in ("low", "high")}
                found.setdefault((record.get("name"), _key(record.get("slice"))), record | bounds)
    return list(found.values())


def find(run: RunView, name: str, **slice) -> dict | None:
    return next((r for r in rows_of(run) if r.get("name") == name and _key(r.get("slice")) == _key(slice)), None)


def items(run: RunView, name: str) -> dict | None:
    """Per-item values of a metric: {"ids", "values", "weights"?, "slices"?}."""
    for evaluation in run.evaluations:
        given = (evaluation.results.get("per_item") or {}).get(name)
        if isinstance(given, dict) and len(given.get("ids") or []) == len(given.get("values") or []) > 0:
            return given
    return None


def baseline_of(gathered: Gathered, run: RunView) -> RunView | None:
    """The evaluated SFT model that `run` was made from, else the first one."""
    candidates = [other for other in gathered.of("sft") if other.evaluations]
    ancestors = gathered.ancestors(run)
    return next((c for c in reversed(candidates) if c.fingerprint in ancestors), candidates[0] if candidates else None)


def difference(run: RunView, baseline: RunView, name: str, slice: dict | None = None) -> Interval | None:
    """Paired difference of a metric over the items both models were given; None where there are none."""
    mine, theirs = items(run, name), items(baseline, name)
    if mine is None or theirs is None:
        return None
    theirs_at = dict(zip(theirs["ids"], theirs["values"]))
    columns = mine.get("slices") or {}
    if any(key not in columns for key in slice or {}):
        return None
    kept = [
        i
        for i, one in enumerate(mine["ids"])
        if one in theirs_at and all(columns[key][i] == value for key, value in (slice or {}).items())
    ]
    if len(kept) < 2:
        return None
    weights = mine.get("weights")
    return paired_difference(
        [mine["values"][i] for i in kept],
        [theirs_at[mine["ids"][i]] for i in kept],
        weights and [weights[i] for i in kept],
    )


def compare(run: RunView, baseline: RunView | None, record: dict) -> Cell:
    """The cell of one record, with its difference to the baseline in numbers and words."""
    name, unit = record["name"], record.get("unit")
    cell = Cell(
        record["value"], record.get("low", float("nan")), record.get("high", float("nan")), record.get("n", 0), unit,
        contamination=record.get("contamination"),
    )  # fmt: skip
    if baseline is None or run is baseline:
        return cell
    found = difference(run, baseline, name, record.get("slice") or {})
    if found is None:
        return cell
    better = record.get("better") or (METRICS[name].better if name in METRICS else "none")
    if not found.clear_of_zero:
        return cell._replace(difference=found, verdict="no clear difference")
    up = found.value > 0
    if better == "none":
        return cell._replace(difference=found, verdict="higher, clearly" if up else "lower, clearly")
    good = up == (better == "higher")
    return cell._replace(
        difference=found, verdict="better, clearly" if good else "worse, clearly", tone="good" if good else "bad"
    )


def comparison(gathered: Gathered, runs: list[RunView]) -> tuple[list[Column], list[Row]]:
    """Models x metrics over all items, bits per byte by language."""
    names = dict.fromkeys(record["name"] for run in runs for record in rows_of(run))
    by_length = next((r for run in runs if (r := find(run, "length_baseline_accuracy"))), None)
    if by_length is not None and "implicit_preference_accuracy" in names:  # the same for every model: said once
        del names["length_baseline_accuracy"]
    columns: list[Column] = []
    for name in sorted(names, key=lambda name: [*METRICS, name].index(name)):
        slices: list[dict] = [{}]
        if name == "bits_per_byte":
            spoken = dict.fromkeys(
                r["slice"]["language"]
                for run in runs
                for r in rows_of(run)
                if r["name"] == name and set(r.get("slice") or {}) == {"language"}
            )
            slices = [{"language": language} for language in spoken] or [{}]
        for slice in slices:
            record = next((r for run in runs if (r := find(run, name, **slice))), None)
            if record is None:
                continue
            known = METRICS.get(name) or Metric(name.replace("_", " ").capitalize(), record.get("unit") or "", "none")
            label = known.label + "".join(f", {LANGUAGES.get(v, v)}" for v in slice.values())
            meaning = known.meaning
            if name == "implicit_preference_accuracy" and by_length is not None:
                meaning += f"; by length alone {measure(by_length['value'], 'fraction')}"
            columns.append(Column(name, label, meaning, record.get("unit"), slice))
    rows = []
    for run in runs:
        baseline = baseline_of(gathered, run)
        records = [find(run, column.metric, **column.slice) for column in columns]
        rows.append(Row(run, run is baseline, [compare(run, baseline, r) if r else None for r in records]))
    return columns, rows


def breakdown(runs: list[RunView], name: str, by: str) -> dict | None:
    """One metric by the values of `by` (family, level), within each language where the evaluation has that.

    Returns:
        {"groups": [(language or "", [run])], "rows": [(value of by, [cell or None ...])], "worst", "best"} or None.
    """
    records = [(run, r) for run in runs for r in rows_of(run) if r["name"] == name and by in (r.get("slice") or {})]
    spoken = list(dict.fromkeys(r["slice"]["language"] for _, r in records if set(r["slice"]) == {by, "language"}))
    values = list(dict.fromkeys(r["slice"][by] for _, r in records))
    if len(values) < 2:
        return None
    shown = [run for run in runs if any(run is other for other, _ in records)]
    table = []
    for value in sorted(values, key=str) if by == "level" else values:
        cells = []
        for language in spoken or [None]:
            where = {by: value} | ({"language": language} if language else {})
            for run in shown:
                record = find(run, name, **where)
                cells.append(record and compare(run, None, record))
        table.append((value, cells))
    return {"groups": [(LANGUAGES.get(language, language or ""), shown) for language in spoken or [""]], "rows": table}


class Answer(NamedTuple):
    run: RunView
    response: str
    correct: bool | None


class Sample(NamedTuple):
    prompt: str
    answer: str | None
    language: str
    family: str
    answers: list[Answer | None]


def said_in_evaluation(run: RunView) -> list[dict]:
    return [sample for evaluation in run.evaluations for sample in evaluation.results.get("samples") or []]


def said_in_training(run: RunView) -> list[dict]:
    """What the model said at its last validation; the language is guessed from the script."""
    lines = run.lines("samples.jsonl")
    last = max((line.get("step") or 0 for line in lines), default=0)
    return [
        line | {"language": "zh" if re.search("[\u4e00-\u9fff]", str(line.get("prompt"))) else "en"}
        for line in lines
        if (line.get("step") or 0) == last
    ]


def samples(
    runs: list[RunView], said: Callable[[RunView], list[dict]] = said_in_evaluation, by_language: int = 6
) -> tuple[list[RunView], list[Sample]]:
    """The same prompts answered by each model: first those on which they differ, one of each family before a second."""
    answered: dict[tuple, dict[int, dict]] = {}
    for position, run in enumerate(runs):
        for sample in said(run):
            if isinstance(sample, dict) and sample.get("prompt"):
                key = (sample.get("id"), str(sample["prompt"]))
                answered.setdefault(key, {}).setdefault(position, sample)
    positions = sorted({position for given in answered.values() for position in given})
    usual = [given for given in answered.values() if len(given) == len(positions)] or list(answered.values())

    def telling(given: dict[int, dict]) -> tuple:
        verdicts = [bool(given[p].get("correct")) for p in positions if p in given]
        return len(set(verdicts)) < 2, not (verdicts and verdicts[-1])

    chosen: list[dict[int, dict]] = []
    languages = dict.fromkeys(str(next(iter(given.values())).get("language") or "") for given in usual)
    for language in languages:
        pool = [g for g in usual if str(next(iter(g.values())).get("language") or "") == language]
        pool.sort(key=telling)
        seen: dict[Any, int] = {}
        ranked: list[tuple[int, int, dict]] = []
        for given in pool:
            family = next(iter(given.values())).get("family")
            ranked.append((seen.get(family, 0), len(ranked), given))
            seen[family] = seen.get(family, 0) + 1
        chosen += [given for _, _, given in sorted(ranked, key=lambda r: r[:2])[:by_language]]
    made = []
    for given in chosen:
        first = next(iter(given.values()))
        made.append(
            Sample(
                prompt=str(first["prompt"]),
                answer=None if first.get("answer") is None else str(first["answer"]),
                language=str(first.get("language") or ""),
                family=str(first.get("family") or ""),
                answers=[
                    Answer(runs[p], str(given[p].get("response", "")), given[p].get("correct")) if p in given else None
                    for p in positions
                ],
            )
        )
    return [runs[p] for p in positions], made


def _key(slice: dict | None) -> tuple:
    return tuple(sorted((slice or {}).items(), key=lambda pair: pair[0]))
