"""The dashboard: whom it answers, what it shows of sound, broken and absent runs, what a real browser makes of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watching import TOKEN, Served, browser, served, tree, until

import fabricated
from athanor.dashboard import pages, server
from athanor.dashboard.shelf import Shelf
from athanor.errors import UserError
from athanor.runs.lock import is_locked, locked
from athanor.runs.run import run_folders

EVIL = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder, in which `runs` are and beside them what is nobody's business."""
    folder = tmp_path_factory.mktemp("project")
    runs = fabricated.demo(folder / "runs", hostile=True)
    (folder / "secret.html").write_text("SECRET")
    (folder / "runs/.cache").mkdir()
    (folder / "runs/.cache/page.html").write_text("SECRET")
    pipeline = folder / "runs/pipelines/demo"
    pipeline.mkdir(parents=True)
    steps = {step: os.path.relpath(run, pipeline) for step, run in runs.items()}
    (pipeline / "pipeline.json").write_text(json.dumps({"title": "The demo", "steps": steps}))
    (pipeline / "report.html").write_text("<p>SAVED</p><script>document.title='ran'</script>")
    return folder


@pytest.fixture(scope="module")
def demo(folder: Path):
    with served(folder / "runs") as made:
        yield made


def ids(root: Path) -> dict[str, str]:
    """experiment -> `experiment/fingerprint`."""
    return {run.parent.relative_to(root).as_posix(): run.relative_to(root).as_posix() for run in run_folders(root)}


# --- whom it answers --------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_told(demo: Served):
    for answer in (
        demo.ask("/", cookie=None),
        demo.ask("/", cookie="wrong"),
        demo.ask("/", cookie=""),
        demo.ask("/?token=wrong", cookie=None),
        demo.ask("/?token=", cookie=None),
        demo.ask("/nothing", cookie=None),
        demo.ask("/", "POST", cookie=None),
    ):
        assert answer.status == 403
        assert "demo" not in answer.text


def test_the_token_becomes_a_cookie_and_leaves_the_address(demo: Served):
    answer = demo.ask(f"/compare?run=a&token={TOKEN}", cookie=None)
    assert answer.status == 303
    assert answer.headers["location"].endswith("/compare?run=a")
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith(f"athanor-{demo.port}={TOKEN};")
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_it_only_reads(demo: Served, folder: Path):
    before = tree(folder)
    for path in (
        "/",
        f"/run/{ids(demo.shelf.root)['ppo/demo']}",
        "/pipeline/demo",
        "/saved/pipelines/demo/report.html",
    ):
        assert demo.ask(path).status == 200
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/", "/compare", "/saved/pipelines/demo/report.html"):
            assert demo.ask(path, method).status == 405
    assert tree(folder) == before


def test_another_name_for_this_machine_is_refused(demo: Served):
    """A page elsewhere whose own name has been made to point here."""
    assert demo.ask("/", Host="evil.example").status == 400
    assert demo.ask("/", Host=f"evil.example:{demo.port}").status == 400
    assert demo.ask("/", Host=f"localhost:{demo.port}").status == 200


def test_it_listens_on_this_machine_only():
    with server.listen(0) as opened:
        assert opened.getsockname()[0] == "127.0.0.1"
        opened.listen()
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", opened.getsockname()[1]))
        with pytest.raises(UserError, match="choose another: --port 0"):
            server.listen(opened.getsockname()[1])


OUT = [
    "../secret.html", "..%2fsecret.html", "%2e%2e/secret.html", "%2e%2e%2fsecret.html", "..%5csecret.html",
    ".cache/page.html", "pipelines/../../secret.html", "pipelines/demo/../../../secret.html", "/secret.html",
    "pipelines/demo/..%2f..%2f..%2fsecret.html", "pipelines/demo/pipeline.json", "%00", "..", ".",
]  # fmt: skip


@pytest.mark.parametrize("room", ["saved", "run", "pipeline", "ablation", "search"])
def test_no_address_leads_out_of_the_folder(demo: Served, folder: Path, room: str):
    absolute = str(folder / "secret.html")
    for place in [*OUT, absolute, absolute.replace("/", "%2f")]:
        answer = demo.ask(f"/{room}/{place}")
        assert answer.status in (404, 400), (room, place, answer.status)
        assert "SECRET" not in answer.text, (room, place)
    assert demo.ask("/compare?run=../secret.html").status == 404


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_every_page_holds_what_it_is_about(demo: Served):
    runs = ids(demo.shelf.root)
    listed = demo.page("/")
    assert listed.count('name="run"') == len([*run_folders(demo.shelf.root)])
    for name, reference in runs.items():
        if not name.startswith("evaluate/"):  # of which there are several of a name
            assert f'href="/run/{reference}"' in listed
    shown = demo.page(f"/run/{runs['dpo/demo']}")
    for heading in ("Lineage", "Curves", "Samples", "This run", "athanor train experiment=dpo/demo"):
        assert heading in shown
    assert "The demo" in demo.page("/pipeline/demo")
    compared = demo.page(f"/compare?run={runs['sft/demo']}&run={runs['dpo/demo']}")
    assert [compared.count(f'tone-{tone}"') > 0 for tone in pages.TONES[:2]] == [True, True]
    charts = re.findall(r"<figcaption><b>([^<]+)</b></figcaption>", compared)
    assert charts[:2] == ["validation/loss", "train/loss"]
    assert {"train/margin", "validation/accuracy"} <= set(charts)


def test_text_of_runs_is_escaped_and_only_our_script_may_run(tmp_path: Path):
    make = fabricated.Builder(tmp_path)
    run = make.train("sft/x", "SFT", {}, 1.0, 40, {"train/loss": (2.0, 1.0, 0.1, 1), EVIL: (1.0, 2.0, 0.1, 1)})
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"overrides": [EVIL], "status": EVIL, "metrics": {EVIL: 1.0}, "error": EVIL, "command": EVIL}
    manifest["science"][EVIL] = EVIL
    manifest["config"][EVIL] = EVIL
    manifest["attempts"] = [{"status": EVIL, "started": 1.0, "slurm": {"job": EVIL, "restarts": EVIL}}]
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "log.txt").write_text(EVIL)
    other = make.train("sft/y", "SFT", {"model": run}, 1.0, 40, {"train/loss": (2.0, 1.0, 0.1, 1)})
    with served(tmp_path) as made:
        for path in (
            "/",
            f"/run/sft/x/{run.name}",
            f"/compare?run=sft/x/{run.name}&run=sft/y/{other.name}",
            f"/run/{EVIL}",
        ):
            answer = made.ask(path.replace(" ", "%20").replace('"', "%22").replace(">", "%3E").replace("<", "%3C"))
            assert "<script>document" not in answer.text
            assert "<img" not in answer.text
            assert answer.text.count("<script") == 1
            policy = answer.headers["content-security-policy"]
            assert re.search(r"default-src 'none'.*", policy)
            assert "script-src 'sha256-" in policy
            assert "unsafe-eval" not in policy


def test_a_broken_manifest_is_told_of_and_hides_no_other(tmp_path: Path):
    make = fabricated.Builder(tmp_path)
    sound = make.train("sft/sound", "SFT", {}, 1.0, 40, {"train/loss": (2.0, 1.0, 0.1, 1)})
    for name, text in {"cut": '{"name": "sft/cut", "fing', "list": "[1, 2]", "empty": "", "bytes": "\xff\xfe"}.items():
        (tmp_path / "sft" / name).mkdir()
        (tmp_path / "sft" / name / "manifest.json").write_bytes(text.encode("latin-1"))
    wrong = {"metrics": [1], "attempts": [5], "inputs": "x", "started": "noon", "science": 3, "config": "x", "code": 1}
    for key, value in wrong.items():
        (tmp_path / "sft" / key).mkdir()
        described = {"name": "sft/x", "fingerprint": key, key: value}
        (tmp_path / "sft" / key / "manifest.json").write_text(json.dumps(described))
    bare = tmp_path / "sft/bare"
    bare.mkdir()
    (bare / "manifest.json").write_text(json.dumps({"name": "sft/bare", "fingerprint": "bare", "kind": "train"}))
    (bare / "metrics.jsonl").write_text('7\n{"step": 3, "train/loss": "high"}\n{"step": 4, "train/lo')
    with served(tmp_path) as made:
        listed = made.page("/")
        assert f'href="/run/sft/sound/{sound.name}"' in listed
        section = listed[listed.index("Cannot be read") : listed.index('id="jobs"')]
        told = re.findall(r"<code>sft/([^<]+)</code>", section)
        assert told == sorted(["bytes", "cut", "empty", "list", *wrong])
        assert made.ask("/run/sft/cut").status == 404
        for path in ("/run/sft/bare/bare", f"/compare?run=sft/bare/bare&run=sft/sound/{sound.name}"):
            assert "sft/bare" in made.page(path)


def test_a_page_that_cannot_be_made_says_so(demo: Served, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise KeyError("<b>")

    monkeypatch.setattr(pages.report, "context", fails)
    answer = demo.ask(f"/run/{ids(demo.shelf.root)['ppo/demo']}")
    assert answer.status == 500
    assert "This page cannot be made: KeyError: &#39;&lt;b&gt;&#39;" in answer.text
    assert demo.ask("/").status == 200


def test_an_empty_or_absent_folder_says_how_to_begin(tmp_path: Path):
    for root in (tmp_path, tmp_path / "absent"):
        with served(root) as made:
            shown = made.page("/")
            assert "No runs yet" in shown
            assert "athanor pipeline experiment=pipelines/demo" in shown
    assert not (tmp_path / "absent").exists()


def test_differences_are_those_of_science():
    one = {"model": {"width": 8, "layers": 2}, "seed": 1, "tags": [], "inputs": {"a": "x"}}
    other = {"model": {"width": 16, "layers": 2, "heads": 4}, "seed": 1, "tags": [], "inputs": {"a": "x"}}
    assert pages.differences([one, other]) == [("model.width", ["8", "16"]), ("model.heads", [None, "4"])]
    assert pages.differences([one, one]) == []


def test_of_too_many_runs_none_is_drawn(demo: Served):
    references = list(ids(demo.shelf.root).values())
    many = "&".join(f"run={reference}" for reference in references[: pages.MOST + 1])
    assert len(references) > pages.MOST
    answer = demo.ask(f"/compare?{many}")
    assert answer.status == 404
    assert f"between 1 and {pages.MOST} runs" in answer.text
    assert demo.ask("/compare").status == 404


def test_what_is_unchanged_is_not_sent_again(demo: Served):
    first = demo.ask("/")
    assert demo.ask("/", If_None_Match=first.headers["etag"]).status == 304
    assert demo.ask("/", If_None_Match='"other"').status == 200


def test_progress_of_what_is_under_way(tmp_path: Path):
    make = fabricated.Builder(tmp_path)
    run = make.train("pretrain/x", "Pretraining", {}, 100.0, 40, {"train/loss": (2.0, 1.0, 0.0, 1)}, status="running")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["max_steps"] = 100
    (run / "manifest.json").write_text(json.dumps(manifest))
    with locked(run):
        (row,), _ = Shelf(tmp_path).rows()
        assert (row.status, row.standing.step, row.share) == ("running", 40, 0.4)
        assert row.standing.needs == pytest.approx(60 * 100 / 40, rel=1e-3)
        assert row.standing.loss == pytest.approx(1.0, abs=0.05)
    (row,), _ = Shelf(tmp_path).rows()
    assert row.status == "interrupted"


def test_to_look_at_a_run_is_never_in_the_way_of_one_that_begins(tmp_path: Path):
    """A process that asks without pause whether the lock is held; this one takes it again and again."""
    with locked(tmp_path):
        assert is_locked(tmp_path)
    code = "import sys; from pathlib import Path; from athanor.runs.lock import is_locked; print(flush=True)\n"
    code += "while True: is_locked(Path(sys.argv[1]))"
    watcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert watcher.stdout
        watcher.stdout.readline()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with locked(tmp_path):
                pass
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdout.close()
    held = subprocess.run(
        [sys.executable, "-c", code.partition("while")[0] + "print(is_locked(Path(sys.argv[1])))", str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert held.stdout.split() == ["False"]


def test_the_verb_prints_an_address_that_answers_and_ends_on_ctrl_c(tmp_path: Path):
    fabricated.Builder(tmp_path).run("tasks/x", "prepare", {}, {}, 1.0)
    process = subprocess.Popen(
        [sys.executable, "-m", "athanor", "dashboard", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{30,}", address)
        from urllib.request import HTTPCookieProcessor, build_opener

        said: list[str] = []

        def answers() -> bool:
            try:
                said.append(build_opener(HTTPCookieProcessor()).open(address, timeout=30).read().decode())
            except OSError:
                return False
            return True

        until(answers)
        assert "tasks/x" in said[-1]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "Traceback" not in out + err
    finally:
        process.kill()
        process.communicate()


# --- a real browser ---------------------------------------------------------------------------------------------------


def test_in_a_browser(tmp_path: Path):
    """Filter, compare, follow the lineage; a run that is going on moves without a reload, and what was chosen stays."""
    runs = fabricated.demo(tmp_path, hostile=True)
    make = fabricated.Builder(tmp_path)
    live = make.train("sft/中文对话", "SFT", {}, 10.0, 20, {"train/loss": (2.0, 1.0, 0.0, 1)}, status="running")
    manifest = json.loads((live / "manifest.json").read_text())
    manifest["overrides"] = ["tags=[对话,古文]"]
    manifest["config"]["max_steps"] = 40
    (live / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False))
    with served(tmp_path) as made, browser() as seen, locked(live):
        script = seen.execute_script

        def shown() -> list[str]:
            return script(
                "return [...document.querySelectorAll('tr[data-text]:not([hidden]) .model')].map(e => e.textContent)"
            )

        seen.get(made.entrance)
        assert seen.current_url == f"{made.address}/"
        assert shown()[0] == "sft/中文对话", "what is under way comes first"
        field = seen.find_element("id", "filter")
        field.send_keys("古文")
        assert shown() == ["sft/中文对话"]
        field.clear()
        field.send_keys("dpo")
        assert shown() == ["dpo/demo"]
        seen.find_element("css selector", "tr:not([hidden]) input[name=run]").click()
        field.clear()
        field.send_keys("ppo demo finished")
        seen.find_element("css selector", "tr[data-text^='ppo/'] input[name=run]").click()
        field.clear()
        field.send_keys(" ")
        seen.find_element("css selector", "#states [data-state=running]").click()
        assert shown() == ["sft/中文对话"]
        assert seen.current_url.endswith("state=running")
        script("window.stayed = true")
        row = "return document.querySelector('tr[data-state=running] td.num').textContent.replace(/\\s+/g, ' ')"
        assert "20 of 40" in script(row)
        with (live / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 30, "time": make.clock + 5, "train/loss": 0.25}) + "\n")
        until(lambda: "30 of 40" in script(row))
        assert "0.250" in script(row)
        assert script("return window.stayed"), "without a reload"
        assert shown() == ["sft/中文对话"], "still filtered"
        seen.find_element("css selector", "#states [data-state='']").click()
        assert script("return document.querySelectorAll('input[name=run]:checked').length") == 2

        seen.find_element("id", "compare").click()
        until(lambda: seen.title.startswith("Compare"))
        assert script("return document.querySelectorAll('.panel:nth-child(2) path.line').length") == 2, "train/loss"
        tip = """const plot = [...document.querySelectorAll('.plot')][arguments[0]];
            const box = plot.querySelector('svg').getBoundingClientRect();
            plot.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width / 2, bubbles: true}));
            return plot.querySelectorAll('.tip').length + plot.querySelector('.tip').textContent"""
        assert re.match(r"1step .*(dpo/demo.*ppo/demo|ppo/demo.*dpo/demo)", script(tip, 1))
        reached = f"[data-node='{runs['shards'].name}']"
        script("document.querySelector(arguments[0]).dispatchEvent(new MouseEvent('click'))", reached)
        until(lambda: seen.current_url.endswith(f"/run/shards/demo/{runs['shards'].name}"))

        seen.get(f"{made.address}/run/sft/%E4%B8%AD%E6%96%87%E5%AF%B9%E8%AF%9D/{live.name}")
        assert seen.title.startswith("sft/中文对话")
        script("window.stayed = true; window.enlivened = document.querySelector('#curves .plot')")
        with (live / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 35, "time": make.clock + 6, "train/loss": 0.2}) + "\n")
        until(lambda: script("return !window.enlivened.isConnected"))
        assert script("return window.stayed")
        assert script(tip, 0).startswith("1step "), "what is new has its pointer too, once"
        seen.set_window_size(500, 900)
        for path in ("/", f"/compare?run=dpo/demo/{runs['dpo'].name}&run=ppo/demo/{runs['ppo'].name}"):
            seen.get(made.address + path)
            assert script("return document.documentElement.scrollWidth <= innerWidth")
        told = [line["message"] for line in seen.get_log("browser")]
        assert told == [], "no script was refused, none failed"
        seen.get(f"{made.address}/run/nothing")
        assert "there is no run nothing" in seen.page_source


def test_a_saved_page_runs_its_script_and_reaches_nothing_here(demo: Served):
    with browser() as seen:
        seen.get(demo.entrance)
        seen.get(f"{demo.address}/saved/pipelines/demo/report.html")
        until(lambda: seen.title == "ran")
        assert seen.execute_script("return self.origin") == "null"
        with pytest.raises(Exception, match=r"(?i)sandbox|cookie"):
            seen.execute_script("return document.cookie")
