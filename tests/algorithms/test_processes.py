"""Two processes train the same models as one, all algorithms, PPO's rollouts included."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ppo import QUESTIONS

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def results(tokenizer_path, tmp_path_factory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("processes")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{q} {i}"}) + "\n" for i in range(5) for q in QUESTIONS))
    found = {}
    for world in (1, 2):
        output = folder / f"{world}.pt"
        command = [sys.executable, str(SCRIPT), str(world), tokenizer_path, str(prompts), str(output)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        found[world] = torch.load(output, weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretraining", "sft", "reward", "dpo", "ppo"])
def test_two_processes_train_the_same_model(name, results):
    one, two = results[1][name], results[2][name]
    assert one["metrics"].keys() == two["metrics"].keys() >= {"train/loss", "train/grad_norm"}
    for key, values in one["metrics"].items():
        np.testing.assert_allclose(two["metrics"][key], values, rtol=2e-3, atol=2e-4, err_msg=key)
    for key, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weight, rtol=1e-3, atol=1e-4)
