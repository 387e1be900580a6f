"""The pipeline as a user runs it: it ends with a report, does nothing twice, and redoes what a change concerns."""

import re
from html.parser import HTMLParser

from furnace_project import PROGRESS, TRAINED, Furnace, read_json

SECTIONS = ["Results", "Lineage", "Curves", "Where it is strong, and where not", "Samples", "Data", "Time", "Reproduce"]


class Page(HTMLParser):
    """The headings of a page, and what it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loads: list[str] = re.findall(r"@import|url\((?!['\"]?(?:data:|#))|fetch\(|XMLHttpRequest|import\(", text)
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.within = tag
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action") and value and not value.startswith(("#", "data:")):
                self.loads.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.within == "h2" and data.strip():
            self.headings.append(data.strip())
            self.within = ""


def test_it_ends_with_a_report(furnace: Furnace) -> None:
    path = furnace.folder / furnace.first.out.rpartition("report: ")[2].strip()
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == SECTIONS
    assert page.loads == []
    for step in read_json(path.with_name("pipeline.json"))["steps"]:
        run = read_json(furnace.directory(step) / "manifest.json")
        assert run["status"] == "finished", step
        assert run["fingerprint"] in text, f"the report leaves out {step}"


def test_it_says_nothing_but_how_far_it_is(furnace: Furnace) -> None:
    """Lightning's own lines, hints and tips go to the run's log.txt."""
    strange = [line for line in furnace.first.err.splitlines() if not PROGRESS.fullmatch(line)]
    assert strange == []
    assert "max_steps=24` reached" in (furnace.directory("pretrain") / "log.txt").read_text()


def test_a_second_call_runs_nothing(furnace: Furnace) -> None:
    before = {step: (furnace.directory(step) / "manifest.json").stat().st_mtime_ns for step in TRAINED}
    again = furnace.run("pipeline", "experiment=pipelines/tiny", python=("-X", "importtime"))
    assert again.code == 0
    assert again.seconds < 30
    assert again.out.count("already done") == len(read_json(furnace.runs / "pipelines/tiny/pipeline.json")["steps"])
    assert before == {step: (furnace.directory(step) / "manifest.json").stat().st_mtime_ns for step in TRAINED}
    imported = set(re.findall(r"\| +([\w.]+)$", again.err, re.MULTILINE))
    assert "athanor.pipeline" in imported
    assert not {"torch", "lightning", "wandb", "deepspeed"} & imported
    assert again.out.rpartition("report: ")[2] == furnace.first.out.rpartition("report: ")[2]


def test_another_learning_rate_of_sft_redoes_sft_and_what_follows(furnace: Furnace) -> None:
    again = furnace.run("pipeline", "experiment=pipelines/tiny", "sft.optimizer.lr=1e-4")
    assert again.code == 0, again.err
    rows = {line.split()[0]: "already done" in line for line in again.out.splitlines()[1:] if "/" in line}
    redone = {step for step, done in rows.items() if not done and step != "report:"}
    assert redone == {
        "sft", "reward", "dpo", "ppo",
        "evaluate_pretrain", "evaluate_sft", "evaluate_reward", "evaluate_dpo", "evaluate_ppo",
    }  # fmt: skip
    other = "pipelines/tiny,sft.optimizer.lr=1e-4"
    assert furnace.directory("pretrain", other) == furnace.directory("pretrain")
    assert furnace.directory("sft", other) != furnace.directory("sft")
    assert read_json(furnace.directory("sft", other) / "manifest.json")["science"]["optimizer"]["lr"] == 1e-4
