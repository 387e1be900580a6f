"""torchrun with fewer processes than before, and with more again: the run goes on where it was, and is that of one
process.

Two agents of torchrun, as on two nodes, meet on this machine; one of them is killed, and may come back.
"""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from furnace_project import Furnace, end, only, read_json, read_lines
from safetensors.torch import load_file
from test_kill import begun, saved, wait

pytestmark = [pytest.mark.strategies, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, EVERY = 240, 10
SETTINGS = [
    "optimizer=adamw", "~optimizer.matrix_lr", "+optimizer.eps=1e-6", "precision=32-true", f"max_steps={STEPS}",
    f"checkpoint.every_n_steps={EVERY}", "logger.every_n_steps=1", "validate_every_n_steps=80",
    "schedule.warmup_steps=2", "cluster.accelerator=cpu", "cluster.micro_batch_size=2",
]  # fmt: skip
# the survivor does not wait long for the other to come back
MEETING = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"


class Agent:
    """torchrun of one node, and what it says."""

    def __init__(self, furnace: Furnace, words: list[str], port: int, folder: Path, name: str, is_host: bool):
        self.said = folder / f"{name}.txt"
        launch = ["-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3"]
        launch += ["--local-addr=127.0.0.1"]
        launch += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=furnace"]
        launch += [f"--rdzv-conf=is_host={int(is_host)},{MEETING}", "--monitor-interval=0.2"]
        environment = furnace.environment | {"LOGLEVEL": "INFO", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with self.said.open("w") as said:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, *launch, "-m", "athanor", *words],
                cwd=furnace.folder, env=environment, stdout=said, stderr=said, text=True,
                start_new_session=True,
            )  # fmt: skip

    def worker(self) -> int:
        """The process that trains."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(agent: Agent, holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, agent.said.read_text()[-3000:]
        assert agent.process.poll() is None, agent.said.read_text()[-3000:]
        time.sleep(0.005)


@pytest.fixture(scope="module")
def alone(furnace: Furnace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, which nothing disturbs."""
    runs = tmp_path_factory.mktemp("alone")
    outcome = furnace.run(*furnace.command("pretrain", runs, *SETTINGS))
    assert outcome.code == 0, outcome.err
    return only(runs)


@pytest.mark.parametrize(("strategy", "lost"), [("ddp", "agent"), ("fsdp2", "node"), ("fsdp2", "node for a while")])
def test_one_of_two_nodes_is_lost_and_the_other_goes_on(
    furnace: Furnace, alone: Path, tmp_path: Path, strategy: str, lost: str
):
    """And takes the lost one in again, saved at the step where it is asked to, if that comes back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    more = [f"strategy={strategy}", "cluster.hang_seconds=20", f"checkpoint.sharded={str(strategy == 'fsdp2').lower()}"]
    words = furnace.command("pretrain", tmp_path / "runs", *SETTINGS, *more)
    agents = [Agent(furnace, words, port, tmp_path, "first", is_host=True)]
    least = 2 * EVERY  # the step that the last attempt goes on from
    try:
        agents.append(Agent(furnace, words, port, tmp_path, "second", is_host=False))
        run = wait(agents[0].process, tmp_path / "runs", lambda run: saved(run) >= 2 * EVERY)
        training = agents[1].worker()
        os.kill(agents[1].process.pid, signal.SIGKILL)
        if lost != "agent":  # else the training is left behind
            os.kill(training, signal.SIGKILL)
        end_of_wait = time.monotonic() + 20
        while is_there(training) and time.monotonic() < end_of_wait:
            time.sleep(0.1)
        assert not is_there(training), "a training outlives the agent that has started it"
        if lost == "node for a while":
            first = agents[0]
            until(first, lambda: "group_world_size=1" in first.said.read_text())
            before = begun(run)  # of both; some of it is done again
            until(first, lambda: begun(run) > before)
            os.kill(first.worker(), signal.SIGSTOP)  # or it would be at its end before the other is there
            least = read_lines(run / "metrics.jsonl", whole=False)[-1]["step"]
            agents.append(Agent(furnace, words, port, tmp_path, "third", is_host=False))
            until(first, lambda: "will restart worker group" in first.said.read_text())
            os.kill(first.worker(), signal.SIGCONT)
        assert agents[0].process.wait(400) == 0, agents[0].said.read_text()[-3000:]
        if len(agents) > 2:
            assert agents[2].process.wait(60) == 0, agents[2].said.read_text()[-3000:]
    finally:
        for agent in agents:
            end(agent.process)
    sizes = re.findall(r"group_world_size=(\d)", agents[0].said.read_text())
    assert [size for size, _ in itertools.groupby(sizes)] == ["2", "1", *(["2"] if len(agents) > 2 else [])]
    first, *_, last = read_json(run / "manifest.json")["attempts"]
    assert first["from_step"] == 0
    assert least <= last["from_step"] < STEPS, "it goes on where a checkpoint was"

    events, expected = (
        [(line["step"], line["train/loss"]) for line in read_lines(one / "metrics.jsonl") if "train/loss" in line]
        for one in (run, alone)
    )
    assert [step for step, _ in events] == [*range(1, STEPS + 1)], "each step once, of the same global batch"
    assert [loss for _, loss in events] == pytest.approx([loss for _, loss in expected], rel=1e-4)
    ours, theirs = (load_file(one / "model.safetensors") for one in (run, alone))
    for name, weight in theirs.items():
        assert float((ours[name] - weight).norm() / weight.norm()) < 1e-2, name
