"""The law: its gradient, exact recovery without noise, intervals that hold the truth, optima, what is refused."""

import csv
import json

import numpy as np
import pytest
from scipy.optimize import check_grad

from athanor import cli
from athanor.errors import UserError
from athanor.report import scaling as page
from athanor.scaling import points
from athanor.scaling.law import Law, Point, fit, objective

TRUE = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # of Hoffmann et al. 2022, approach 3
SIZES, TOKENS = (1e7, 3e7, 1e8, 3e8, 1e9), (2e8, 1e9, 5e9, 2.5e10)


def measured(noise: float, seed: int = 0, law: Law = TRUE) -> list[Point]:
    """A grid of trainings with noise on log L, of that standard deviation."""
    random = np.random.default_rng(seed)
    return [
        Point(n, d, law.loss(n, d) * np.exp(random.normal(0, noise)), f"{n:g} {d:g}") for n in SIZES for d in TOKENS
    ]


def test_the_objective_has_the_gradient_that_it_says():
    grid = measured(0.01)
    x, y, target = (np.log([getattr(p, name) for p in grid]) for name in ("parameters", "tokens", "loss"))
    for start in ([6.0, 6.0, 0.5, 0.34, 0.28], [6.003, 6.017, 0.5247, 0.34, 0.28], [2.0, 10.0, -0.5, 0.1, 0.6]):
        start = np.array(start)
        value, gradient = objective(start, x, y, target)
        error = check_grad(lambda s: objective(s, x, y, target)[0], lambda s: objective(s, x, y, target)[1], start)
        assert error < 1e-3 * np.linalg.norm(gradient)
        assert value > 0


def test_without_noise_the_coefficients_are_found():
    for law in (TRUE, Law(2.2, 60.0, 3000.0, 0.22, 0.41)):
        found = fit(measured(0.0, law=law), samples=20).law
        assert tuple(found) == pytest.approx(tuple(law), rel=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 95% intervals: in 6 draws, of 5 coefficients and 3 optima each. The bootstrap of 20 trainings is a little
    narrow, and coefficients of one draw go together.
    """
    held = dict.fromkeys((*Law._fields, "parameters", "tokens", "optimal loss"), 0)
    best = TRUE.optimum(1e21)
    for seed in range(6):
        found = fit(measured(0.003, seed), samples=30, seed=seed)
        optimum = found.optimum(1e21)
        truth = {**TRUE._asdict(), "parameters": best.parameters, "tokens": best.tokens, "optimal loss": best.loss}
        intervals = {**found.coefficients(), **optimum, "optimal loss": optimum["loss"]}
        for name in held:
            held[name] += intervals[name].low <= truth[name] <= intervals[name].high
    assert all(count >= 3 for count in held.values()), held
    assert sum(held.values()) >= 0.75 * 6 * len(held), held


def test_noise_widens_the_intervals():
    quiet, loud = (fit(measured(noise, 3), samples=40).coefficients()["alpha"] for noise in (0.001, 0.01))
    assert loud.high - loud.low > 3 * (quiet.high - quiet.low)


def test_one_outlier_moves_the_law_little():
    grid = measured(0.001)
    spoilt = [*grid[:7], grid[7]._replace(loss=1.3 * grid[7].loss), *grid[8:]]
    assert fit(spoilt, samples=20).law.loss(1e9, 2.5e10) == pytest.approx(TRUE.loss(1e9, 2.5e10), rel=5e-3)


def test_the_optimum_spends_the_budget_where_no_other_split_is_better():
    best = TRUE.optimum(1e21)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e21)
    for factor in (0.9, 1.1):
        assert TRUE.loss(factor * best.parameters, best.tokens / factor) > best.loss


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (measured(0.0)[:5], "these are 5 with 2 and 4"),
        ([p for p in measured(0.0) if p.parameters < 1e8], "these are 8 with 2 and 4"),
        ([*measured(0.0), Point(1e9, 1e9, float("nan"), "broken")], "broken has no positive"),
    ],
)
def test_too_little_is_refused(grid, sentence):
    with pytest.raises(UserError, match=r"at least 6 trainings|has no positive") as caught:
        fit(grid)
    assert sentence in str(caught.value)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "trainings.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "parameters", "tokens", "loss"])
        writer.writerows([p.name, p.parameters, p.tokens, p.loss] for p in measured(0.002))
    return path


def test_a_table_to_a_law_a_page_and_json(table, tmp_path, capsys):
    out = tmp_path / "law.html"
    assert cli.main(["scaling", str(table), "--compute", "1e21", "--samples", "20", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "alpha" in text
    assert "parameters for 1e+21 FLOPs" in text
    html = out.read_text()
    assert html.count("<svg class=") == 3
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert all(f'<th scope="row">{p.name}</th>' in html for p in measured(0.002))
    assert cli.main(["scaling", str(table), "--compute", "1e21", "--samples", "20", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["coefficients"]["alpha"]["value"] == pytest.approx(0.34, abs=0.03)
    assert shown["optimum"]["1e+21"]["parameters"]["value"] == pytest.approx(TRUE.optimum(1e21).parameters, rel=0.2)


def test_names_are_escaped(tmp_path):
    grid = [p._replace(name="<b>&" + p.name) for p in measured(0.001)]
    html = page.write(fit(grid, samples=20), [], "athanor scaling x", tmp_path / "x.html").read_text()
    assert "<b>&" not in html
    assert "&lt;b&gt;&amp;" in html


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("parameters,tokens\n1,2\n", "has no column 'loss'"),
        ("parameters,tokens,loss\n1,2,3\n1,x,3\n", "line 3: ['1', 'x', '3'] are not three numbers"),
        ("", "these are 0 with 0 and 0"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, sentence):
    (path := tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        fit(points.read([str(path)]))
    assert sentence in str(caught.value)
