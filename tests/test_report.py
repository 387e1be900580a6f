"""The report: its numbers, its escaping, what it does without parts, its drawings, and a real browser's view of it."""

import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fabricated
from athanor.errors import UserError
from athanor.report import charts, formats, graph, story, tables, write
from athanor.report.charts import Bound, Line, line_chart
from athanor.report.gather import gather
from athanor.report.graph import HEIGHT, WIDTH, Node

VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "circle", "line", "path"}


class Page(HTMLParser):
    """A page's text, and whether its elements nest and load nothing."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.languages: dict[str, str] = {}
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.loads += [
            f"{k}={v}" for k, v in given.items() if k in ("src", "href") and v and not v.startswith(("#", "data:"))
        ]
        self.loads += [v for k, v in given.items() if k == "style" and "url(" in v]
        self.loads += [k for k in given if k.startswith("on")]
        self.lang = given.get("lang", "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.loads += re.findall(
                r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)\S*|\bfetch\(|XMLHttpRequest", data
            )
        elif data.strip():
            self.words.append(" ".join(data.split()))
            self.languages[self.words[-1]] = self.lang

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> dict[str, Path]:
    return fabricated.demo(tmp_path_factory.mktemp("demo"), hostile=True)


@pytest.fixture(scope="module")
def html(pipeline, tmp_path_factory) -> str:
    return write(pipeline, tmp_path_factory.mktemp("out"), title="Demo").read_text("utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_loads_nothing(html, page):
    assert page.loads == []
    assert html.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in html
    assert html.count("<script") == 1
    assert len(html.encode()) < 1_000_000
    for heading in ("Results", "Lineage", "Curves", "Samples", "Data", "Time", "Reproduce", "Environment"):
        assert heading in page.words
    assert "nan" not in page.text
    assert "None" not in page.text


def test_text_of_runs_is_escaped(html, page):
    assert fabricated.HOSTILE in page.words, "it is shown, as text"
    assert "<script>document" not in html
    assert "<img" not in html
    assert "img" not in page.tags


def test_every_text_of_a_run_is_escaped(tmp_path):
    """The hostile text in names, metrics, families, reasons, commands, hardware, sources, languages, models."""
    evil = '"><script>alert(1)</script>'
    make = fabricated.Builder(tmp_path)
    sources = {evil: {"documents": 3, "bytes": 10}}
    documents = make.documents("documents/x", sources, {evil: {evil: 2}}, {evil: [{"path": evil, "bytes": 3}]})
    data = json.loads((documents / "cleaning.json").read_text()) | {"languages": {evil: 1}}
    data["steps"][0]["samples"] = {evil: [evil]}
    (documents / "cleaning.json").write_text(json.dumps(data))
    sft = make.train(
        "sft/x", "SFT", {evil: documents}, 1.0, 40, {"train/loss": (2.0, 1.0, 0.1, 1), evil: (1.0, 2.0, 0.1, 1)}
    )
    for run in (documents, sft):
        manifest = json.loads((run / "manifest.json").read_text())
        manifest |= {
            "name": evil,
            "status": evil,
            "packages": {evil: evil},
            "overrides": [evil],
            "command": "athanor pipeline " + evil,
        }
        manifest["hardware"] = {"cpu": evil, "gpus": [evil], "platform": evil}
        (run / "manifest.json").write_text(json.dumps(manifest))
    (sft / "reproduce.json").write_text(json.dumps({"verdict": evil}))
    slice = {"language": evil, "family": evil}
    result = {"name": evil, "slice": {}, "value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "unit": evil, "better": evil}
    exact = [
        result | {"name": "exact_match", "slice": s}
        for s in ({}, slice, slice | {"family": evil + "2"}, {"family": evil})
    ]
    sample = {"prompt": evil, "response": evil, "answer": evil, "language": evil, "family": evil, "correct": True}
    evaluation = make.run(
        "evaluate/x",
        "evaluate",
        {},
        {"model": sft},
        1.0,
        files={"results.json": {"model": {"fingerprint": sft.name}, "metrics": [result, *exact], "samples": [sample]}},
    )
    text = write({evil: documents, "sft": sft, "e": evaluation}, tmp_path / "report.html", title=evil).read_text(
        "utf-8"
    )
    assert "<script>alert" not in text
    assert text.count("<script") == 1
    assert Page(text).loads == []


def test_what_the_curves_say_is_shown_with_what_to_try(tmp_path):
    """A verdict each with its findings, escaped; nothing of runs that have none or too little to judge."""
    runs = fabricated.demo(tmp_path)
    evil = "<script>alert(1)</script>"
    seen = {
        "pretrain": ("overfit", [("Validation has risen.", "more data"), ("It jumps.", "")]),
        "sft": ("healthy", [("The loss has come down.", "")]),
        "dpo": (evil, [(evil, evil)]),
        "reward": ("too early", [("Only 3 steps.", "")]),
    }
    for step, (verdict, findings) in seen.items():
        described = [{"verdict": verdict, "says": says, "try": remedy} for says, remedy in findings]
        (runs[step] / "diagnosis.json").write_text(json.dumps({"verdict": verdict, "findings": described}))
    html = write(runs, tmp_path / "out").read_text("utf-8")
    page = Page(html)
    assert "What the curves say" in page.words
    assert "Pretrained overfit. Validation has risen. Try: more data. It jumps." in page.text
    assert "SFT healthy. The loss has come down." in page.text
    assert f"DPO {evil}. {evil} Try: {evil}." in page.text
    assert "<script>alert" not in html
    assert "Only 3 steps" not in html
    found = [story.diagnosis(run) for run in gather(runs).trained]
    assert [one.tone for one in found if one] == ["bad", "good", "bad"]


def test_chinese_is_marked_as_chinese(page):
    questions = {text: language for text, language in page.languages.items() if "加" in text and "等于多少" in text}
    assert questions
    assert set(questions.values()) == {"zh-Hans"}
    assert page.languages[next(t for t in page.words if t.startswith("What is ") and "+" in t)] == "en"


def test_its_numbers_are_those_of_the_runs(pipeline, page):
    results = {name: json.loads((pipeline[f"evaluate-{name}"] / "results.json").read_text()) for name in ("sft", "ppo")}
    values = {name: results[name]["per_item"]["exact_match"]["values"] for name in results}
    mean = {name: sum(v) / len(v) for name, v in values.items()}
    gap = f"+{100 * (mean['ppo'] - mean['sft']):.1f}"
    assert f"PPO answers {100 * mean['ppo']:.1f}% of 288 held-out questions" in page.text
    assert f"against {100 * mean['sft']:.1f}% after SFT alone" in page.text
    assert f"PPO answers more questions right than SFT: {gap} points" in page.text
    assert "SFT answers more questions right than the pretrained model" in page.text
    kl = gather(pipeline).of("ppo")[0].metrics["ppo/kl"][1]
    assert f"PPO held its target: mean KL {sum(kl[-12:]) / 12:.3f}, target 1.00 nats a response." in page.text
    assert "The reward model ranks 92.0% of held-out pairs right; always taking the longer answer, 49.5%." in page.text
    assert "9,412 documents" in page.text
    assert "4.7 M parameters" in page.text
    for text in ("−1,208", "near-duplicate", "3.62", "2.87", "7.0 M"):
        assert text in page.text
    for run in pipeline.values():
        name = json.loads((run / "manifest.json").read_text())["name"]
        assert f"athanor reproduce {name}/{run.name}" in page.words
    assert "athanor pipeline experiment=pipelines/demo" in page.words


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_differences_pair_the_same_items_and_are_said_in_words(pipeline):
    gathered = gather(pipeline)
    sft, ppo = gathered.of("sft")[0], gathered.of("ppo")[0]
    assert tables.baseline_of(gathered, ppo) is sft
    mine, theirs = (tables.items(run, "exact_match") for run in (ppo, sft))
    shuffled = dict(mine)
    order = list(reversed(range(len(mine["ids"]))))
    shuffled["ids"], shuffled["values"] = [mine["ids"][i] for i in order], [mine["values"][i] for i in order]
    shuffled["slices"] = {k: [v[i] for i in order] for k, v in mine["slices"].items()}
    expected = sum(a - b for a, b in zip(mine["values"], theirs["values"])) / len(mine["values"])
    assert tables.difference(ppo, sft, "exact_match").value == pytest.approx(expected)
    ppo.evaluations[0].results["per_item"]["exact_match"] = shuffled
    assert tables.difference(ppo, sft, "exact_match").value == pytest.approx(expected)
    few = [i for i in range(0, len(mine["ids"]), 3) if mine["values"][i]]
    ppo.evaluations[0].results["per_item"]["exact_match"] = {k: [mine[k][i] for i in few] for k in ("ids", "values")}
    of_few = tables.difference(ppo, sft, "exact_match")
    assert of_few.value == pytest.approx(sum(1 - theirs["values"][i] for i in few) / len(few))
    assert of_few.n == len(few)
    ppo.evaluations[0].results["per_item"]["exact_match"] = mine
    chinese = tables.difference(ppo, sft, "exact_match", {"language": "zh"})
    assert chinese.n == 144

    def verdict(name, run):
        return tables.compare(run, sft, tables.find(run, name))

    assert (verdict("exact_match", ppo).verdict, verdict("exact_match", ppo).tone) == ("better, clearly", "good")
    pretrained = gathered.of("pretraining")[0]
    assert (verdict("exact_match", pretrained).verdict, verdict("exact_match", pretrained).tone) == (
        "worse, clearly",
        "bad",
    )
    assert verdict("kl_to_reference", ppo).verdict == "higher, clearly"
    assert verdict("loss_per_token", ppo).verdict == "no clear difference"
    bits = tables.find(pretrained, "loss_per_token")
    sft_loss = tables.items(sft, "loss_per_token")
    sft_loss["values"] = [v + w for v, w in zip(sft_loss["values"], sft_loss["weights"])]  # one nat worse everywhere
    cell = tables.compare(pretrained, sft, bits)
    assert cell.tone == "good", "a lower loss is better"
    assert cell.difference.value == pytest.approx(-1, abs=0.4)
    assert verdict("exact_match", sft) == verdict("exact_match", sft)._replace(difference=None, verdict="")


@pytest.mark.parametrize(
    ("stated", "sentence", "tone"),
    [
        ({"kl_target": 0.75}, "held its target", "good"),  # the run ends near 0.82
        ({"kl_target": 0.5}, "missed its target", "bad"),
        ({"kl_target": 0.5, "kl_bound": 0.9}, "stayed within its bound", "good"),
        ({"kl_bound": 0.75}, "went beyond its bound", "bad"),
    ],
)
def test_the_kl_is_held_against_what_the_experiment_states(pipeline, stated, sentence, tone):
    gathered = gather(pipeline)
    gathered.of("ppo")[0].manifest["science"]["algorithm"] = {"_target_": "athanor.algorithms.ppo.PPO"} | stated
    (found,) = [f for f in story.findings(gathered, []) if "mean KL" in f.text]
    assert sentence in found.text
    assert found.tone == tone


def test_samples_prefer_telling_questions_and_each_family_once(pipeline):
    gathered = gather(pipeline)
    models = [run for run in gathered.trained if run.evaluations and run.role != "reward"]
    shown, samples = tables.samples(models, by_language=5)
    assert [run.role for run in shown] == ["pretraining", "sft", "dpo", "ppo"]
    assert len(samples) == 10
    for language in ("en", "zh"):
        families = [s.family for s in samples if s.language == language]
        assert len(set(families)) == 5
    assert all(len({a.correct for a in s.answers}) == 2 for s in samples)
    assert all(a.run is run for s in samples for a, run in zip(s.answers, shown))


def test_breakdown_by_family_within_language(pipeline):
    gathered = gather(pipeline)
    models = [run for run in gathered.trained if run.evaluations and run.role != "reward"]
    table = tables.breakdown(models, "exact_match", "family")
    assert [language for language, _ in table["groups"]] == ["English", "Chinese"]
    assert [value for value, _ in table["rows"]] == list(fabricated.FAMILIES)
    value, cells = table["rows"][3]
    record = tables.find(models[2], "exact_match", family=value, language="zh")
    assert cells[4 + 2].value == record["value"]
    assert [value for value, _ in tables.breakdown(models, "exact_match", "level")["rows"]] == [1, 2, 3]


# --- gathering --------------------------------------------------------------------------------------------------------


def test_ancestors_are_found_from_one_run_and_after_a_move(tmp_path):
    runs = fabricated.demo(tmp_path / "before")
    shutil.move(tmp_path / "before", tmp_path / "after")
    moved = tmp_path / "after" / runs["ppo"].relative_to(tmp_path / "before")
    gathered = gather(moved)
    assert {run.role for run in gathered.runs} == {
        "documents", "tasks", "tokenizer", "shards", "pretraining", "sft", "reward", "ppo",
    }  # fmt: skip
    places = {run.fingerprint: i for i, run in enumerate(gathered.runs)}
    for run in gathered.runs:
        assert all(places[p.fingerprint] < places[run.fingerprint] for p in run.parents if p.fingerprint in places)
    assert write(moved, tmp_path).read_text("utf-8").count("dpo/demo") == 0


def test_sources_of_every_form_name_the_same_runs(tmp_path):
    runs = fabricated.demo(tmp_path)
    folder = tmp_path / "pipelines" / "demo"
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(
        json.dumps(
            {
                "title": "The demo",
                "note": "Read <this>: 先读这个",
                "steps": {k: os.path.relpath(v, folder) for k, v in runs.items()},
            }
        )
    )
    names = [run.fingerprint for run in gather(runs).runs]
    assert [run.fingerprint for run in gather(list(runs.values())).runs] == names
    assert [run.fingerprint for run in gather(str(folder)).runs] == names
    assert gather(folder).title == "The demo"
    assert write(folder, folder / "report.html") == folder / "report.html"
    assert "Read &lt;this&gt;: 先读这个" in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("last", ["documents", "tokenizer", "pretrain", "sft", "reward", "evaluate-sft"])
def test_any_beginning_of_a_pipeline_makes_a_page(pipeline, tmp_path, last):
    steps = list(pipeline)
    some = {
        step: pipeline[step]
        for step in steps[: steps.index(last) + 1]
        if not step.startswith("evaluate") or step == last
    }
    page = Page(write(some, tmp_path / "report.html").read_text("utf-8"))
    assert page.loads == []
    assert "nan" not in page.text
    assert ("Samples" in page.words) == (last not in ("documents", "tokenizer"))
    assert ("the same items" in page.text) == (last == "evaluate-sft")
    assert ("Curves" in page.words) == (last not in ("documents", "tokenizer"))


def test_damaged_and_unfinished_runs_are_said_not_fatal(tmp_path):
    runs = fabricated.demo(tmp_path)
    manifest = json.loads((runs["ppo"] / "manifest.json").read_text())
    (runs["ppo"] / "manifest.json").write_text(
        json.dumps(manifest | {"status": "running", "seconds": None, "finished": None})
    )
    with (runs["sft"] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "train/loss": NaN}\n{"step": null, "x": 1}\n{"step": 405, "train/lo')
    (runs["dpo"] / "metrics.jsonl").unlink()
    (runs["dpo"] / "model.safetensors").write_bytes(b"\x00" * 20)
    (runs["evaluate-dpo"] / "results.json").write_text("{")
    (runs["documents"] / "cleaning.json").write_text("[]")
    (runs["tokenizer"] / "tokenizer.json").unlink()
    page = Page(write(runs, tmp_path / "report.html").read_text("utf-8"))
    assert "Not everything here is finished: ppo/demo (interrupted)." in page.words
    assert "nan" not in page.text
    sft = gather(runs).of("sft")[0]
    assert sft.metrics["train/loss"][0][-1] == 400
    assert all(map(math.isfinite, sft.metrics["train/loss"][1]))


def test_a_resumed_step_counts_once(tmp_path):
    run = fabricated.Builder(tmp_path).run("sft/x", "train", {}, {}, 1.0)
    events = [{"step": s, "train/loss": v} for s, v in [(1, 5.0), (3, 3.0), (2, 4.5), (3, 3.5)]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert gather(run).runs[0].metrics["train/loss"] == ([1, 2, 3], [5.0, 4.5, 3.5])


def test_tokens_are_counted_without_the_pauses(tmp_path):
    """100 tokens a step at 50 a second, with a pause of a minute for validation in between."""
    run = fabricated.Builder(tmp_path).run("sft/x", "train", {}, {}, 1.0)
    times = [10 + 20 * i + (60 if i > 3 else 0) for i in range(9)]
    events = [{"step": 10 * (i + 1), "time": t, "train/tokens_per_second": 50.0} for i, t in enumerate(times)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert gather(run).runs[0].tokens == pytest.approx(100 * 90)


def test_what_is_no_run_is_refused(tmp_path, refused):
    assert "neither a run nor a pipeline" in refused(gather, tmp_path)
    assert "no readable manifest.json" in refused(gather, {"a": tmp_path})
    assert "at least one run" in refused(gather, [])
    with pytest.raises(UserError):
        write(tmp_path / "nowhere", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_the_lineage_is_layered_reduced_and_does_not_overlap():
    made_from = {"raw": "", "a": "raw", "b": "", "c": "a b raw", "d": "c a", "e": "c", "f": "d e b c"}
    nodes = [Node(key, key, "", "", "data", tuple(parents.split())) for key, parents in made_from.items()]
    assert graph.reduce(nodes)["c"] == ["a", "b"]
    assert graph.reduce(nodes)["f"] == ["d", "e"]
    placed = graph.layout(nodes)
    assert sorted((p, c) for p, c, _ in placed.edges) == [
        ("a", "c"), ("b", "c"), ("c", "d"), ("c", "e"), ("d", "f"), ("e", "f"), ("raw", "a"),
    ]  # fmt: skip
    for parent, child, _ in placed.edges:
        assert placed.nodes[parent].x + WIDTH < placed.nodes[child].x
    assert placed.nodes["b"].x == placed.nodes["a"].x, "a source stands beside its first use"
    boxes = list(placed.nodes.values())
    for i, one in enumerate(boxes):
        assert 0 <= one.x <= placed.width - WIDTH
        assert 0 <= one.y <= placed.height - HEIGHT
        for other in boxes[i + 1 :]:
            assert abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT


def test_the_lineage_lights_all_ancestors(pipeline):
    html = str(
        graph.draw(
            [
                Node("a", "a", "", "", "data", ()),
                Node("b", "b", "", "", "data", ("a",)),
                Node("c", "c", "", "", "sft", ("b",)),
            ]
        )
    )
    assert 'data-node="c" data-from="a b"' in html
    assert html.count('class="edge"') == 2
    assert graph.draw([]) == ""


def test_charts_stay_in_their_frame_and_show_the_data():
    steps = list(range(1, 2001))
    values = [8 * math.exp(-s / 400) + 2 for s in steps]
    values[700] = 400.0  # a spike must not flatten the rest
    svg = line_chart(
        [Line("training", "sft", steps, values), Line("validation", "sft", [500, 2000], [4.3, 2.1], "marked")], log=True
    )
    numbers = [
        tuple(map(float, pair))
        for d in re.findall(r' d="M([^"]+)"', svg)
        for pair in re.findall(r"([\d.]+) ([\d.-]+)", d)
    ]
    assert len(numbers) < 3 * charts.POINTS
    assert all(charts.LEFT - 1 <= x <= charts.WIDTH for x, _ in numbers)
    assert all(0 <= y <= charts.HEIGHT for _, y in numbers)
    drawn = [y for _, y in numbers]
    assert max(drawn) - min(drawn) > 0.6 * (charts.HEIGHT - charts.TOP - charts.BOTTOM)
    data = json.loads(re.search(r'data-lines="([^"]+)"', svg)[1].replace("&#34;", '"'))
    assert data[1]["step"] == [500, 2000]
    assert data[1]["value"] == ["4.30", "2.10"]
    assert data[0]["step"][-1] == 2000
    assert data[0]["y"] == sorted(data[0]["y"]) or max(data[0]["y"]) > data[0]["y"][0], (
        "a falling loss goes down the page"
    )
    assert "from" in re.search('aria-label="([^"]+)"', svg)[1]
    assert line_chart([Line("empty", "sft", [], [])]) == ""


def test_axes():
    assert charts._scale(0.0, 1.0, log=False) == ([0, 0.25, 0.5, 0.75, 1.0], 0, 1.0)
    ticks, low, high = charts._scale(2.1, 8.3, log=True)
    assert low <= 2.1 < 8.3 <= high
    assert len(ticks) >= 4
    for low, high in ((3.0, 3.0), (-5.0, -5.0), (0.0, 0.0), (1e-9, 2e-9), (-3.0, 1e6)):
        ticks, bottom, top = charts._scale(low, high, log=False)
        slack = 0.021 * (ticks[1] - ticks[0])  # an axis is not made a step longer for so little
        assert bottom - slack <= low <= high <= top + slack
        assert bottom < top
        assert 2 <= len(ticks) <= 8
    svg = line_chart(
        [Line("kl", "ppo", [1, 2, 3], [0.1, 0.2, 0.3], "plain")], bound=Bound("bound 1.00", 1.0), zero=True
    )
    bound = float(re.search(r'class="bound"[^>]*y1="([\d.]+)"', svg)[1])
    assert charts.TOP < bound < charts.HEIGHT - charts.BOTTOM, (
        "the bound is inside the frame, though the curve is far below"
    )


def test_smoothing_is_an_unbiased_average():
    assert charts.smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    assert charts.smooth([1.0, 100.0] * 400, log=True)[-1] == pytest.approx(10.0, rel=0.2)
    assert charts.smooth([1.0, 100.0] * 400)[-1] == pytest.approx(50.5, rel=0.2)


def test_formats():
    assert [formats.count(n) for n in (0, 999, 9_999, 12_345, 999_960, 4_720_000, 3.2e9)] == [
        "0", "999", "9,999", "12.3 k", "1.0 M", "4.7 M", "3.2 G",
    ]  # fmt: skip
    assert [formats.duration(s) for s in (0.04, 9.97, 59.6, 693, 3600 * 5 + 119, 86400 * 3)] == [
        "0.0 s", "10 s", "1 min 00 s", "11 min 33 s", "5 h 02 min", "3 d 0 h",
    ]  # fmt: skip
    assert [formats.number(x) for x in (0, 1, 0.85, 12.345, 1234.5, -0.5, 3e-4, 2e7)] == [
        "0", "1.00", "0.850", "12.3", "1,234", "−0.500", "3.0e−4", "2.0e7",
    ]  # fmt: skip
    assert formats.signed(0.174, "fraction") == "+17.4"
    assert formats.signed(-0.00004) == "±0"
    assert formats.signed(-2.5) == "−2.50"
    assert formats.measure(float("nan")) == formats.MISSING
    assert formats.measure(0.9234, "fraction") == "92.3%"
    assert formats.size(12_918_400) == "12.9 MB"
    assert formats.series(["a", "b", "c"]) == "a, b and c"
    assert formats.tidy("\n a\n \n\n\nb\x00 \u4e2d\n") == "a\n\nb· 中"
    assert formats.shorten("abcdef", 4) == "abc…"


# --- a real browser ---------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_in_a_browser(html, tmp_path):
    """The script runs through, hostile text does not, and nothing is wider than a narrow window."""
    probe = """<script>
      addEventListener("error", (e) => document.body.dataset.errors = e.message);
      addEventListener("load", () => {
        const plot = document.querySelector(".plot"), box = plot.querySelector("svg").getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, bubbles: true}));
        document.querySelector(".node:last-of-type").dispatchEvent(new PointerEvent("pointerenter"));
        document.querySelector('[data-language="zh"]').click();
        document.body.dataset.probe = JSON.stringify({
          tip: plot.querySelector(".tip").textContent, lit: document.querySelectorAll(".node.on").length,
          shown: [...document.querySelectorAll(".sample[data-language]:not([hidden])")].map((s) => s.dataset.language),
          wide: document.documentElement.scrollWidth, window: innerWidth, title: document.title,
        });
      });
    </script>"""
    page = tmp_path / "page.html"
    page.write_text(html.replace("<body>", "<body>" + probe), "utf-8")
    dumped = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom",
         "--window-size=500,900", f"--user-data-dir={tmp_path / 'profile'}", f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "data-errors" not in dumped
    seen = json.loads(re.search(r'data-probe="([^"]+)"', dumped)[1].replace("&quot;", '"'))
    assert re.match(r"step [\d,]+\d+\.\d+ training", seen["tip"])
    assert seen["lit"] >= 8
    assert set(seen["shown"]) == {"zh"}
    assert seen["title"] == "Demo · athanor"
    assert seen["wide"] <= seen["window"]
