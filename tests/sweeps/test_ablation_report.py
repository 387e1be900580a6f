"""The report of an ablation: what it says, in every format, of whole, partial and diverged sweeps."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from sweep_bench import ablate

from athanor import cli
from athanor.errors import UserError
from athanor.report import ablation as page
from athanor.report.ablation.text import HEADS
from athanor.runs import store
from athanor.sweeps import ablation, results


def made(numbers=None, name="size"):
    """The results after these members, or all, have run in this process."""
    composed = ablation.load(name)
    for member in composed.members:
        if numbers is None or member.number in numbers:
            store.execute(member.experiment)
    return results.gather(composed)


@pytest.fixture
def whole(bench):
    """Four seeds. Size 2 is worse by one and bold makes no difference at all."""
    return made() if ablate(bench, seeds=[1, 2, 3, 4]) else None


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_tables_hold_the_numbers(whole):
    by_level = {(row["factor"], row["level"]): row for row in rows(page.table(whole))}
    worse, same = by_level["job.size", "2.0"], by_level["mode", "bold"]
    seeds = range(1, 5)
    one, two = ([size + s / 10 + 0.01 * (s * s * size % 5) for s in seeds] for size in (1, 2))
    assert float(worse["mean"]) == pytest.approx(sum(two) / 4)
    assert float(worse["difference"]) == pytest.approx(sum(two) / 4 - sum(one) / 4)
    assert worse["verdict"] == "worse"
    assert float(worse["p_holm"]) == pytest.approx(2 * float(worse["p"]))
    assert same["verdict"] == "no difference: the same value in every seed"
    assert same["difference_low"] == ""
    assert by_level["mode", "plain"]["baseline"] == "1"
    values = rows(page.members(whole))
    assert [float(row["loss"]) for row in values if row["job.size"] == "2.0"] == pytest.approx(two)
    assert all(row["run"].startswith("guess/tiny/") and row["status"] == "finished" for row in values)


def test_markdown_and_latex_say_the_same(whole):
    text = page.markdown(whole)
    table = [line for line in text.splitlines() if line.startswith("| job.size") or line.startswith("| mode")]
    assert len(table) == 4
    assert all(line.count(" | ") == len(HEADS) - 1 for line in table)
    assert "| worse |" in text
    assert "- job.size 2.0: worse, +1." in text
    tex = page.latex(whole)
    assert tex.count(r"\\") == 1 + 4
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {6}
    assert r"\_" not in body[0]
    assert "worse" in tex


def test_further_metrics_are_shown_paired_and_without_a_verdict(bench):
    ablate(bench, seeds=[1, 2, 3, 4], also=["accuracy"], overrides=["tags=[x]"])
    found = made()
    by_level = {(row["factor"], row["level"]): row for row in rows(page.table(found))}
    one, two = ([1 - (size + s / 10 + 0.01 * (s * s * size % 5)) / 100 for s in range(1, 5)] for size in (1, 2))
    assert float(by_level["job.size", "2.0"]["accuracy"]) == pytest.approx(sum(two) / 4)
    assert float(by_level["job.size", "2.0"]["accuracy_difference"]) == pytest.approx((sum(two) - sum(one)) / 4)
    assert by_level["job.size", "1.0"]["accuracy_difference"] == ""
    values = [float(row["accuracy"]) for row in rows(page.members(found)) if row["job.size"] == "2.0"]
    assert values == pytest.approx(two)
    (line,) = [x for x in page.markdown(found).splitlines() if x.startswith("| job.size | 2.0 | 0.9")]
    assert line.startswith(f"| job.size | 2.0 | {sum(two) / 4:.4f} (")
    assert "better" not in line
    assert "worse" not in line
    assert " of guess/tiny with tags=[x]; one factor at a time; 4 seeds. Judged by loss; " in page.markdown(found)
    assert "Also measured" in Reader(page.page(found)).text
    ablate(bench, seeds=[1], also=["acuracy"])
    with pytest.raises(UserError, match="no metric 'acuracy'; did you mean 'accuracy'"):
        results.gather(ablation.load("size"))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
def test_latex_compiles(whole, tmp_path):
    source = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + page.latex(whole) + r"\end{document}"
    (tmp_path / "t.tex").write_text(source)
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


class Reader(HTMLParser):
    """The text of a page, what it would load, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.loaded = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loaded += [given[name] for name in ("src", "href") if given.get(name, "#")[0] != "#"]
        if tag not in ("meta", "link", "br", "line", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def test_the_page_is_one_sound_file(whole):
    text = page.page(whole)
    reader = Reader(text)
    assert reader.open == []
    assert [link for link in reader.loaded if not link.startswith("data:")] == []
    assert "url(" not in text
    assert "Which size" in reader.text
    assert "12 of 12" in reader.text
    assert "worse" in reader.text
    assert text.count('class="band') == 4  # two factors with two levels each; train/loss
    assert text.count('class="whisker"') == 1  # bold's differences do not vary: no interval


def test_what_a_user_wrote_is_escaped(bench):
    hostile = "<img src=x onerror=alert(1)> & {{ 7 * 7 }} $\\alpha$ | 好"
    ablate(bench, factors={hostile: {"a": [], hostile: ["job.size=3.0"]}}, seeds=[1, 2])
    found = made()
    text = page.page(found)
    assert "<img" not in text
    assert "{{ 7 * 7 }}" in Reader(text).text
    assert "\\$\\textbackslash{}alpha\\$" in page.latex(found)
    assert rows(page.table(found))[1]["level"] == hostile
    lines = [line for line in page.markdown(found).splitlines() if line.startswith("|") and "img" in line]
    assert [line.count(" | ") for line in lines] == [len(HEADS) - 1] * 2


def test_one_seed_says_that_it_says_nothing(bench):
    ablate(bench, seeds=[3])
    found = made()
    text = Reader(page.page(found)).text
    assert "one seed has no interval" in text
    assert "better" not in text.partition("Results")[2].partition("Every level")[0].replace("is better", "")
    assert page.page(found).count('class="band') == 0
    assert "no interval" in text


def test_a_sweep_half_done_says_what_is_missing(bench):
    ablate(bench, seeds=[1, 2, 3])
    found = made({1, 2, 4, 5, 7})
    text = Reader(page.page(found)).text
    assert "4 of 9 members have no value yet" in text
    assert "2 of 3 seeds" in text
    assert "no seed has finished both this and the baseline" in text
    assert text.count("not run yet") == 4
    nothing = Reader(page.page(made(set(), name="size"))).text
    assert "members have no value yet" in nothing


def test_before_the_first_member(bench):
    found = made(set())
    for path in page.write(found, bench.folder / "out"):
        assert path.read_text()
    assert "0 of 6" in (bench.folder / "out/report.html").read_text()


def test_divergence_is_said_and_left_out(bench):
    ablate(bench, factors={"job.size": [1.0, 99.0]}, seeds=[1, 2])
    found = made()
    assert [outcome.value is None for outcome in found.outcomes] == [False, True] * 2
    text = Reader(page.page(found)).text
    assert "Without a finite value, and left out of every mean: 99.0 seed 1; 99.0 seed 2" in text
    assert "diverged: loss is nan" in text


def test_a_grid_shows_its_cells_and_main_effects(bench):
    ablate(bench, design="grid", seeds=[1, 2, 3])
    found = made()
    assert [cell.label for cell in found.cells] == [
        f"job.size {s}, mode {m}" for s in ("1.0", "2.0") for m in ("plain", "bold")
    ]
    assert "Every cell of the grid" in page.page(found)
    assert {level.label: level.verdict.split(":")[0] for level in found.levels if level.verdict} == {
        "2.0": "worse", "bold": "no difference",
    }  # fmt: skip


def test_a_metric_that_is_not_there(bench, refused):
    ablate(bench, metric={"name": "los", "better": "lower"})
    assert "has no metric 'los'; did you mean 'loss'?" in refused(made)


def test_the_verb(bench, capsys):
    ablate(bench, seeds=[1, 2, 3])
    made()
    assert cli.main(["report", "ablation=size"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["job.size 2.0: worse", "mode bold: no difference: the same value in every seed"]
    names = ("report.html", "report.md", "report.csv", "members.csv", "report.tex")
    assert out[2:] == [f"runs/ablations/size/{name}" for name in names]
    assert "athanor sweep ablation=size" in (bench.folder / "runs/ablations/size/report.html").read_text()
