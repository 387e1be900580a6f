"""Sweeps on Weights & Biases: their definition, and agents of W&B's own library, whose server is a small one here.

The server answers the three requests of a sweep (make it, register an agent, what next) and no others: the runs of the
trials are W&B's offline ones, read back. What W&B's own server makes of a definition is not tested.
"""

from __future__ import annotations

import http.server
import json
import threading

import pytest
import yaml
from search_bench import look_for
from sweep_bench import SMALL, ablate

from athanor import cli
from athanor.runs.run import list_runs
from athanor.sweeps import ablation, search, wandb_sweep
from wandb_files import items, stored

wandb = pytest.importorskip("wandb")


def test_a_search_is_defined_by_what_its_file_says(valley):
    space = {
        "job.x": {"float": [0.1, 0.9]},
        "+job.y": {"float": [1.0e-4, 1.0e-2], "log": True},
        "+job.z": {"float": [0.5, 2.0], "step": 0.5},
        "job.layers": {"int": [1, 4]},
        "+job.units": {"int": [8, 512], "log": True},
        "kind": {"flat": [], "deep": ["job.kind=deep"]},
    }
    look_for(valley, space=space, sampler="gp", metric={"name": "loss", "better": "higher"})
    found = wandb_sweep.definition(search.load("valley"))
    assert found == {
        "name": "search/valley",
        "description": "Where the valley is.",
        "method": "bayes",
        "metric": {"name": "loss", "goal": "maximize"},
        "parameters": {
            "job.x": {"distribution": "uniform", "min": 0.1, "max": 0.9},
            "+job.y": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-2},
            "+job.z": {"values": [0.5, 1.0, 1.5, 2.0]},
            "job.layers": {"distribution": "int_uniform", "min": 1, "max": 4},
            "+job.units": {"distribution": "q_log_uniform_values", "min": 8, "max": 512},
            "kind": {"values": ["flat", "deep"]},
        },
        "run_cap": 4,
    }
    look_for(valley, space={"job.x": {"float": [0.0, 0.9], "points": 4}}, sampler="grid", trials=None)
    found = wandb_sweep.definition(search.load("valley"))
    assert (found["method"], found["run_cap"]) == ("grid", 4)
    assert found["parameters"]["job.x"] == {"values": pytest.approx([0.0, 0.3, 0.6, 0.9])}


def test_check_shows_an_ablations_definition(bench, capsys):
    assert cli.main(["sweep", "ablation=size", "backend=wandb", "--check"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["method"], found["metric"]) == ("grid", {"name": "loss", "goal": "minimize"})
    assert found["parameters"] == {"member": {"values": [1, 2, 3, 4, 5, 6]}}


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        ([], {}, "set WANDB_API_KEY or log in with `wandb login`"),
        ([], {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "WANDB_MODE=offline forbids that"),
        (["backend=ray"], {}, "there is no backend 'ray'"),
        (["--workers", "2"], {}, "give the command once for each worker"),
        (["worker=1"], {}, "give the command once for each worker"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(valley, capsys, monkeypatch, tmp_path, words, environment, said):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = ["backend=wandb"] * (not any(word.startswith("backend=") for word in words))
    assert cli.main(["sweep", "search=valley", *given, *words]) == 2
    assert said in capsys.readouterr().err
    assert valley.executions == []


@pytest.fixture
def server(monkeypatch, tmp_path):
    """What W&B's server would say; `points` are handed out one after another."""
    asked: list[tuple[str, dict]] = []
    points: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            what, given = request["query"], request.get("variables") or {}
            if "query Viewer" in what:
                self.answer({"data": {"viewer": {"id": "u", "entity": "lab", "username": "u", "flags": "{}"}}})
            elif "upsertSweep" in what:
                asked.append(("sweep", given))
                project = {"id": "p", "name": given["projectName"], "entity": {"id": "e", "name": "lab"}}
                found = {"sweep": {"name": "abc123", "project": project}, "configValidationWarnings": []}
                self.answer({"data": {"upsertSweep": found}})
            elif "createAgent" in what:
                asked.append(("agent", given))
                self.answer({"data": {"createAgent": {"agent": {"id": "agent"}}}})
            elif "agentHeartbeat" in what:
                commands = [{"type": "exit"}] if not points and given["runState"] == "{}" else []
                if points and given["runState"] == "{}":
                    point = {key: {"value": value} for key, value in points.pop(0).items()}
                    commands = [{"type": "run", "run_id": f"run{len(points)}", "args": point}]
                found = {"agent": {"id": "agent"}, "commands": json.dumps(commands)}
                self.answer({"data": {"agentHeartbeat": found}})
            else:
                print("OTHER", what[:300])
                self.answer({"errors": [{"message": "not asked for here"}]})

        def answer(self, told):
            text = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    for name, value in {
        "WANDB_BASE_URL": f"http://127.0.0.1:{listening.server_port}", "WANDB_API_KEY": "0" * 40, "WANDB_ENTITY": "lab",
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "NETRC": str(tmp_path / "none"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb_sweep, "require_server", lambda: None)
    monkeypatch.setattr("wandb.agents.pyagent.Agent.HEARTBEAT_SLEEP_SECONDS", 0.05)
    yield points, asked
    wandb.teardown()
    listening.shutdown()


def read_back(folder):
    """Of each offline run, in order: its config, summary, and whether it ended well."""
    found, begun = {}, []
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):  # whose names know seconds only
        records = stored(path)
        begun.append((next(r.run.start_time.ToNanoseconds() for r in records if r.HasField("run")), path, records))
    for _, path, records in sorted(begun, key=lambda one: one[0]):
        config = {k: v for r in records if r.HasField("run") for k, v in items(r.run.config.update).items()}
        config |= {k: v for r in records if r.HasField("config") for k, v in items(r.config.update).items()}
        summary = {k: v for r in records if r.HasField("summary") for k, v in items(r.summary.update).items()}
        codes = [r.exit.exit_code for r in records if r.HasField("exit")]
        found[path.stem.removeprefix("run-")] = config, summary, codes
    return found


def test_agents_train_what_the_server_says_and_tell_what_came_of_it(valley, server, tmp_path):
    points, asked = server
    wanted = [{"job.x": 0.5, "job.kind": "deep"}, {"job.x": 0.3, "job.kind": "flat"}]
    look_for(valley, trials=2)
    valley.write("trouble/any", "raise 1")
    found = search.load("valley")
    points += wanted
    assert wandb_sweep.agent(found) == 2
    assert [what for what, _ in asked] == ["sweep", "agent"]
    assert yaml.safe_load(asked[0][1]["config"])["parameters"]["job.kind"] == {"values": ["flat", "deep"]}
    assert asked[1][1] | {"host": ""} == {"host": "", "entityName": "lab", "projectName": "athanor", "sweep": "abc123"}
    runs = read_back(tmp_path)
    assert list(runs) == ["run1", "run0"]
    assert runs["run1"][2] == [1], "it failed, and W&B knows"
    config, summary, codes = runs["run0"]
    assert (config["job.x"], config["job.kind"], codes) == (0.3, "flat", [0])
    (made,) = [run for run in list_runs() if run.status == "finished"]
    assert summary["loss"] == pytest.approx(0.1 + 0.01 + 0.01)
    assert summary["runs"] == [made.id]
    points += wanted
    assert wandb_sweep.agent(found) == 2
    assert [what for what, _ in asked] == ["sweep", "agent", "agent"], "the sweep is known"
    assert len(valley.executions) == 3, "only what had failed is made again"


def test_members_of_an_ablation_are_told_by_their_levels(bench, server, tmp_path):
    points, _ = server
    points += [{"member": 2}, {"member": 1}]
    ablate(bench, **SMALL)
    composed = ablation.load("size")
    assert wandb_sweep.agent(composed) == 2
    runs = read_back(tmp_path)
    for run, number, size in (("run1", 2, 2.0), ("run0", 1, 1.0)):
        config, summary, codes = runs[run]
        assert (config["job.size"], config["seed"], codes) == (str(size), 1, [0])
        target = composed.member(number).target
        assert summary["runs"] == [f"{target.name}/{target.fingerprint}"]
        assert summary["loss"] == pytest.approx(size + 0.1 + 0.01 * int(size))
