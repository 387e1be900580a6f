"""The ladder of sizes: each rung has the parameters, tokens, batch and learning rate that its rule gives."""

import math

import pytest

from athanor import config as configs
from athanor.planning import plan as planning
from athanor.planning.step import networks
from small import REPOSITORY

PARAMETERS = {
    "10m": 9_833_664, "30m": 30_285_696, "124m": 124_278_528, "350m": 341_885_952, "1.3b": 1_281_460_224,
    "3b": 2_919_410_688, "7b": 6_744_707_072, "13b": 13_023_728_640, "34b": 33_756_553_216, "70b": 68_989_231_104,
}  # fmt: skip
UNITS = {"m": 1e6, "b": 1e9}


def test_every_rung_is_here():
    assert {path.stem for path in (REPOSITORY / "experiments/ladder").glob("*.yaml")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_rung(name):
    experiment = configs.load(f"ladder/{name}")
    config = experiment.config
    assert not configs.check(config, experiment.variables)
    assert all(problem.startswith("inputs.") for problem in experiment.problems)
    parameters = PARAMETERS[name]
    length = config["data"]["sequence_length"]
    (network,) = networks(config, length)
    assert sum(network.parameters.values()) == parameters
    assert parameters == pytest.approx(float(name[:-1]) * UNITS[name[-1]], rel=0.04)
    batch = config["global_batch_size"] * length
    tokens = config["max_steps"] * batch
    assert tokens == pytest.approx(20 * parameters, rel=1e-3)
    compute = 6 * parameters * tokens
    assert abs(math.log2(batch / (0.2920 * compute**0.3271))) <= 0.51
    assert config["optimizer"]["lr"] == pytest.approx(0.3118 * compute**-0.1250, rel=0.02)
    assert length <= config["model"]["context"]
    assert config["model"]["vocabulary_size"] == 32768
    assert 0.04 <= config["schedule"]["warmup_steps"] / config["max_steps"] <= 0.06 or (
        config["schedule"]["warmup_steps"] == 2000
    )
    for devices in (1, 8):
        layout = planning.layout_of("auto", devices)
        assert planning.batch_plan(config, layout).per_rank * devices == config["global_batch_size"]
