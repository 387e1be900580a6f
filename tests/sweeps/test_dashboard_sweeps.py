"""Ablations and searches on the dashboard: their tables as they are now, before, while and after they run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from search_bench import look_for
from sweep_bench import ablate

from athanor import catalog, cli
from athanor.runs import store
from athanor.sweeps import ablation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dashboard"))
from watching import served, tree


@pytest.fixture
def shown(valley):
    catalog.runs_root().mkdir(exist_ok=True)
    with served(catalog.runs_root()) as made:
        yield made


def test_an_ablation_is_shown_as_it_is_now(shown, project):
    assert "experiments" not in shown.page("/")
    assert 'href="/ablation/size"' in shown.page("/")
    before = tree(shown.shelf.root)
    page = shown.page("/ablation/size")
    assert page.count("not run yet") == 6
    composed = ablation.load("size")
    for number in (1, 2):
        store.execute(composed.member(number).experiment)
    assert shown.page("/ablation/size").count("not run yet") == 4
    after = tree(shown.shelf.root)
    assert {name for name in after.keys() - before.keys() if not name.startswith("guess/tiny/")} == set()
    ablate(project, seeds=[1, 2, 3])
    assert shown.page("/ablation/size").count("not run yet") == 7, "the file's new seed"
    ablate(project, metric={"name": "lots", "better": "lower"})
    answer = shown.ask("/ablation/size")
    assert answer.status == 404
    assert "has no metric" in answer.text


def test_a_search_is_shown_as_it_is_now_and_once_its_file_is_gone_as_it_was_saved(shown, project, capsys):
    answer = shown.ask("/search/valley")
    assert answer.status == 404
    assert "has no trials yet" in answer.text
    look_for(project, trials=1)
    assert cli.main(["sweep", "search=valley"]) == 0
    page = shown.page("/search/valley")
    assert "All runs" in page
    assert page.count('<th scope="row">0</th>') == 1
    assert cli.main(["report", "search=valley"]) == 0
    (project.folder / "experiments/search/valley.yaml").unlink()
    saved = shown.ask("/search/valley")
    assert saved.status == 200
    assert "All runs" not in saved.text
    assert "sandbox" in saved.headers["content-security-policy"]


def test_one_with_overrides_is_found_by_its_folder(shown, project, capsys):
    ablate(project, factors={"job.size": [1.0, 2.0]}, seeds=[1])
    for member in ablation.load("size", ["+job.mode=bold"]).members:
        store.execute(member.experiment)
    assert cli.main(["report", "ablation=size", "+job.mode=bold"]) == 0
    (folder,) = (shown.shelf.root / "ablations").iterdir()
    page = shown.page(f"/ablation/{folder.name}")
    assert "All runs" in page, "made anew, not the saved one"
    assert page.count("not run yet") == 0
    assert shown.page("/ablation/size").count("not run yet") == 2
