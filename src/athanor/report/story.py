"""The report in sentences and single figures: what was made, what came of it, whether it kept its promises."""

from typing import NamedTuple

from athanor.report import facts
from athanor.report.formats import count, duration, measure, number, series, signed
from athanor.report.gather import Gathered, RunView
from athanor.report.tables import baseline_of, difference, find

CONTROL = 1.2
"""A controller that is 20% off its target corrects at full strength (Ziegler et al. 2019, section 2.2)."""
STAGE_WORDS = {
    "pretraining": "pretraining",
    "sft": "supervised fine-tuning",
    "reward": "a reward model",
    "dpo": "DPO",
    "ppo": "PPO",
}


def lede(gathered: Gathered, policies: list[RunView]) -> str:
    """What was trained, from what, and the result, in a sentence or two."""
    parts = []
    models = [run for run in gathered.trained if run.role != "reward"] or gathered.trained
    size = next((run.parameters for run in models if run.parameters), None)
    read = [found for run in gathered.of("documents") if (found := facts.cleaning_of(run))]
    documents = sum(found["start"] for found in read)
    if models:
        what = f"A language model of {count(size)} parameters" if size else "A language model"
        of = f" from {documents:,} documents" if documents else ""
        time = duration(sum(run.seconds or 0 for run in gathered.runs)).replace(" ", "\u00a0")
        stages = series(list(dict.fromkeys(STAGE_WORDS.get(run.role, run.role) for run in gathered.trained)))
        parts.append(f"{what}, made{of} in {time}: {stages}.")
    elif documents:
        parts.append(f"{documents:,} documents, prepared in {duration(sum(r.seconds or 0 for r in gathered.runs))}.")
    scored = [(run, found) for run in policies if (found := find(run, "exact_match"))]
    if scored:
        best, top = max(scored, key=lambda pair: pair[1]["value"])
        share = measure(top["value"], "fraction")
        sentence = f"{_phrase(best, capital=True)} answers {share} of {top.get('n', 0):,} held-out questions"
        baseline = baseline_of(gathered, best)
        first = next((found for run, found in scored if run.role == "pretraining"), None)
        against = []
        if baseline is not None and baseline is not best and (found := find(baseline, "exact_match")):
            against.append(f"{measure(found['value'], 'fraction')} after {baseline.label} alone")
        if first is not None and best.role != "pretraining":
            against.append(f"{measure(first['value'], 'fraction')} after pretraining")
        parts.append(sentence + (f", against {series(against)}." if against else "."))
    return " ".join(parts)


def key_figures(gathered: Gathered, policies: list[RunView], judges: list[RunView]) -> list[tuple[str, str, str]]:
    """(value, what it is, detail) for the top of the page."""
    made = []
    scored = [(run, found) for run in policies if (found := find(run, "exact_match"))]
    if scored:
        best, top = max(scored, key=lambda pair: pair[1]["value"])
        low, high = (measure(top[side], "fraction") for side in ("low", "high"))
        made.append((measure(top["value"], "fraction"), f"exact match, {best.label}", f"{low} to {high}"))
        baseline = baseline_of(gathered, best)
        gap = difference(best, baseline, "exact_match") if baseline is not None and baseline is not best else None
        if gap is not None and baseline is not None:
            low, high = (signed(side, "fraction") for side in gap[1:3])
            made.append((signed(gap.value, "fraction"), f"points over {baseline.label}", f"{low} to {high}"))
    for run in judges[:1]:
        if found := find(run, "preference_accuracy"):
            low, high = (measure(found[side], "fraction") for side in ("low", "high"))
            made.append((measure(found["value"], "fraction"), "pairs the reward model ranks right", f"{low} to {high}"))
    for run in gathered.of("ppo")[:1]:
        kl, limit = mean_kl(run), kl_limit(run)
        if kl is not None:
            detail = f"{limit[0]} {number(limit[1])}" if limit is not None else "end of training"
            made.append((number(kl, 2), f"nats of KL a response, {run.label}", detail))
    tokens = sum(row["tokens"] or 0 for row in facts.times(gathered))
    if tokens:
        made.append(
            (count(tokens), "tokens trained on", f"{len(gathered.trained)} training{'s' * (len(gathered.trained) > 1)}")
        )
    made.append(
        (
            duration(sum(run.seconds or 0 for run in gathered.runs)),
            "for all runs together",
            f"{len(gathered.runs)} run{'s' * (len(gathered.runs) > 1)}",
        )
    )
    return made


class Finding(NamedTuple):
    text: str
    tone: str  # "good", "bad" or "plain"


def findings(gathered: Gathered, policies: list[RunView]) -> list[Finding]:
    """What the numbers say, one sentence each, with the interval and whether it is clear of zero."""
    found = []
    for run in policies:
        baseline = baseline_of(gathered, run)
        record = find(run, "exact_match")
        if record is None or baseline is None or run is baseline:
            continue
        gap = difference(run, baseline, "exact_match")
        if gap is None:
            continue
        after, earlier = (baseline, run) if run.fingerprint in gathered.ancestors(baseline) else (run, baseline)
        value, low, high = gap[:3] if after is run else (-gap.value, -gap.high, -gap.low)
        span = (
            f"{signed(value, 'fraction')} points, 95% interval {signed(low, 'fraction')} to {signed(high, 'fraction')}"
        )
        if low > 0:
            found.append(
                Finding(
                    f"{_phrase(after, capital=True)} answers more questions right than {_phrase(earlier)}: {span}.",
                    "good",
                )
            )
        elif high < 0:
            found.append(
                Finding(
                    f"{_phrase(after, capital=True)} answers fewer questions right than {_phrase(earlier)}: {span}.",
                    "bad",
                )
            )
        else:
            found.append(
                Finding(
                    f"{_phrase(after, capital=True)} is not clearly different from {_phrase(earlier)}: {span}.", "plain"
                )
            )
    for run in gathered.of("ppo"):
        limit, kl = kl_limit(run), mean_kl(run)
        if kl is None or limit is None:
            continue
        name, value = limit
        held = kl <= value * (1 if name == "bound" else CONTROL)
        words = ("stayed within" if held else "went beyond") if name == "bound" else ("held" if held else "missed")
        text = f"{run.label} {words} its {name}: mean KL {number(kl)}, {name} {number(value)} nats a response."
        found.append(Finding(text, "good" if held else "bad"))
    for run in gathered.of("reward"):
        accuracy, by_length = find(run, "preference_accuracy"), find(run, "length_baseline_accuracy")
        if accuracy is not None:
            text = f"The reward model ranks {measure(accuracy['value'], 'fraction')} of held-out pairs right"
            if by_length is not None:
                text += f"; always taking the longer answer, {measure(by_length['value'], 'fraction')}"
                clear = accuracy["low"] > by_length["high"]
            else:
                clear = accuracy["low"] > 0.5
            found.append(Finding(text + ".", "good" if clear else "bad"))
    unfinished = [run for run in gathered.runs if run.status != "finished"]
    if unfinished:
        named = series([f"{run.name} ({run.status})" for run in unfinished])
        found.insert(0, Finding(f"Not everything here is finished: {named}.", "bad"))
    return found


class Diagnosis(NamedTuple):
    verdict: str
    tone: str  # as of a Finding
    findings: list[tuple[str, str]]  # what is seen, what to try


def diagnosis(run: RunView) -> Diagnosis | None:
    """What the run's diagnosis.json says; None where it has none, or says too little to judge."""
    read = run.read("diagnosis.json")
    if not isinstance(read, dict) or read.get("verdict") in (None, "too early"):
        return None
    verdict = str(read["verdict"])
    found = [(str(f.get("says", "")), str(f.get("try", ""))) for f in read.get("findings") or []]
    return Diagnosis(verdict, {"healthy": "good", "underfit": "plain"}.get(verdict, "bad"), found)


def _phrase(run: RunView, capital: bool = False) -> str:
    if run.label != "Pretrained":
        return run.label
    return ("The" if capital else "the") + " pretrained model"


def kl_limit(run: RunView) -> tuple[str, float] | None:
    """How far the experiment lets the policy go from its reference, nats a response: ("bound" or "target", value)."""
    algorithm = run.science.get("algorithm") or {}
    for key, name in (("kl_bound", "bound"), ("max_kl", "bound"), ("kl_target", "target")):
        for node in (run.science, algorithm):
            if isinstance(node.get(key), (int, float)):
                return name, float(node[key])
    return None


def mean_kl(run: RunView) -> float | None:
    """Mean KL to the reference over the last tenth of training, nats a response."""
    for name in ("ppo/kl", "train/kl"):
        if name in run.metrics:
            values = run.metrics[name][1]
            last = values[-max(1, len(values) // 10) :]
            return sum(last) / len(last)
    return None
