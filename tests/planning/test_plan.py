"""Plans against sums by hand and against each other."""

import json

import pytest

from athanor import cli
from athanor import config as configs
from athanor.errors import UserError
from athanor.planning import machines, models
from athanor.planning import plan as planning
from athanor.planning.layout import layout_of
from athanor.planning.live import ACTIVATIONS, FROZEN, GRADIENTS, OPTIMIZER, WEIGHTS
from athanor.planning.step import trace

DEMO = 1_000_576  # parameters
ADAMW = ("optimizer=adamw", "~optimizer.matrix_lr")
SMALL = ("precision=32-true", *ADAMW, "global_batch_size=8", "+data.validation_batch_size=1")
GPUS = ("cluster=gpus", "cluster.devices=4")


def test_parameters_flops_tokens_and_time(planned):
    found = planned("pretrain/demo", rate=500.0)
    (network,) = found.networks
    width, hidden, keys = 128, 352, 64  # 2 of 4 heads of 32 channels
    assert network.parameters == {
        "embeddings": 2048 * width,
        "attention": 4 * (width * (width + 2 * keys) + width * width),
        "feed-forward": 4 * 3 * width * hidden,
        "norms": 9 * width,
        "output": 0,
    }
    assert sum(network.parameters.values()) == network.active == DEMO
    attention = 12 * 4 * 32 * 4 * 256 / 2  # 12 H C a layer and position seen, half of them on average
    assert found.time.flops / found.time.tokens == pytest.approx(6 * DEMO + attention)
    assert found.time.tokens == 1600 * 8 * 256
    assert found.time.seconds == pytest.approx(1600 * 8 * 256 / 500)


def test_weights_gradients_and_states_by_optimizer(planned):
    at = {}
    for name, overrides in (("adamw", SMALL), ("muon", ("precision=32-true", "global_batch_size=8"))):
        parts = planned("pretrain/demo", *overrides, "cluster.micro_batch_size=4").memory.parts
        assert parts[WEIGHTS] == pytest.approx(4 * DEMO, rel=1e-3)
        assert parts[GRADIENTS] == pytest.approx(4 * DEMO, rel=1e-3)  # of the first micro-batch
        at[name] = parts[OPTIMIZER]
    assert at["adamw"] == pytest.approx(8 * DEMO, rel=3e-3)
    hidden = DEMO - 2048 * 128 - 9 * 128
    assert at["muon"] == pytest.approx(8 * DEMO - 4 * hidden, rel=3e-3)  # one moment of the matrices


def test_gradients_are_gone_when_the_next_forward_pass_begins(planned):
    config = models.with_models(configs.load("pretrain/demo", SMALL))
    layout = layout_of("auto", 1)
    batch = planning.batch_plan(config, layout)
    peaks = trace(config, planning.shape_of(config, 512, None), batch, layout, on_gpu=False).peaks
    assert peaks["forward"].parts.get(GRADIENTS, 0) == 0
    assert peaks["optimizer"].parts[GRADIENTS] == pytest.approx(4 * DEMO, rel=1e-3)
    assert peaks["backward"].parts[GRADIENTS] < 0.5 * 4 * DEMO  # most is held as it begins
    assert peaks["optimizer"].parts.get(ACTIVATIONS, 0) == 0


def test_activations_grow_with_rows_and_not_with_what_is_accumulated(planned):
    one, two, split = (
        planned("pretrain/demo", *SMALL[:-2], "+data.validation_batch_size=1", f"global_batch_size={size}",
                f"cluster.micro_batch_size={micro}").memory.layers["model.blocks.0"]
        for size, micro in ((2, 2), (4, 4), (4, 2))
    )  # fmt: skip
    assert two == pytest.approx(2 * one, rel=0.02)
    assert split == one


def test_sharding_divides_what_it_says_it_does(planned):
    base = ("pretrain/demo", *SMALL, *GPUS)
    alone = planned("pretrain/demo", *SMALL[:-2], "+data.validation_batch_size=1", "global_batch_size=2",
                    device="h100").memory  # fmt: skip
    nodes = {"ddp": "ddp", "fsdp": "{_target_: lightning.pytorch.strategies.ModelParallelStrategy}"} | {
        f"zero{n}": f"{{_target_: lightning.pytorch.strategies.DeepSpeedStrategy, stage: {n}}}" for n in (1, 2, 3)
    }
    plans = {name: planned(*base, f"strategy={node}", device="h100").memory for name, node in nodes.items()}
    found = {name: memory.parts for name, memory in plans.items()}
    for name, weights, states in (("ddp", 1, 1), ("zero1", 1, 4), ("zero2", 1, 4), ("zero3", 4, 4), ("fsdp", 4, 4)):
        assert found[name][WEIGHTS] == pytest.approx(alone.parts[WEIGHTS] / weights), name
        assert found[name][OPTIMIZER] == pytest.approx(alone.parts[OPTIMIZER] / states), name
        assert plans[name].layers == alone.layers, name
    assert found["ddp"]["gradient buckets"] == 4 * DEMO
    block, outside = (DEMO - 2048 * 128 - 128) / 4, 2048 * 128 + 128
    gradients = block + outside if plans["fsdp"].phase == "backward" else 0
    assert found["fsdp"]["gathered"] == 4 * (2 * block + outside + gradients)


def test_tensor_parallelism_splits_heads_and_channels(planned):
    options = "{_target_: lightning.pytorch.strategies.ModelParallelStrategy, tensor_parallel_size: 2}"
    base = ("pretrain/demo", *SMALL, "cluster=gpus")
    whole = planned(*base, "cluster.devices=1", device="h100").memory
    split = planned(*base, "cluster.devices=2", f"strategy={options}", device="h100").memory
    inside = DEMO - 2048 * 128 - 9 * 128
    assert split.parts[WEIGHTS] == pytest.approx(4 * (DEMO - inside / 2), rel=1e-3)
    assert 0.5 < split.layers["model.blocks.0"] / whole.layers["model.blocks.0"] < 0.75
    with pytest.raises(UserError, match=r"tensor_parallel_size=4 must divide model.kv_heads=2"):
        planned(*base, "cluster.devices=4", f"strategy={options.replace('2}', '4}')}", device="h100")


def test_a_stage_has_its_layers_and_the_activations_of_what_is_on_its_way(planned):
    base = ("pretrain/demo", *SMALL, "cluster=gpus", "cluster.micro_batch_size=1")
    one, two = (planned(*base, "cluster.devices=1", f"model.layers={n}", device="h100").memory for n in (1, 2))
    stages, turns = (
        planned(*base, "cluster.devices=4", f"strategy={name}", f"strategy.stages={count}", device="h100")
        for name, count in (("pipeline", 4), ("pipeline_interleaved", 2))
    )
    assert stages.memory.parts[WEIGHTS] == one.parts[WEIGHTS]  # a layer, and both ends
    assert stages.memory.parts[OPTIMIZER] == one.parts[OPTIMIZER]
    assert stages.memory.parts[ACTIVATIONS] == 4 * one.parts[ACTIVATIONS]
    assert (stages.batch.accumulation, turns.batch.accumulation) == (8, 4)
    assert turns.memory.parts[ACTIVATIONS] == 2.5 * two.parts[ACTIVATIONS]  # five halves of its layers
    alone = planned(*base, "cluster.devices=4", "strategy=ddp", rate=None, device="h100").time
    for name, count, idle in (("pipeline", 4, 3 / 8), ("pipeline_interleaved", 2, 1 / 8)):
        words = (*base, "cluster.devices=4", f"strategy={name}", f"strategy.stages={count}")
        assert planned(*words, rate=None, device="h100").time.seconds == pytest.approx(alone.seconds * (1 + idle))
    with pytest.raises(UserError, match=r"strategy.stages=3 does not divide the 4 devices"):
        planned(*base, "cluster.devices=4", "strategy=pipeline", "strategy.stages=3", device="h100")


def test_a_pair_is_two_rows(planned):
    rows = ("precision=32-true", "global_batch_size=4", "+data.validation_batch_size=1")
    single = planned("sft/demo", *rows, length=128)
    pairs = planned("dpo/demo", *rows[:1], "global_batch_size=2", rows[2], length=128)
    assert pairs.memory.layers["model.blocks.0"] == single.memory.layers["model.blocks.0"]
    assert [(net.name, net.trained) for net in pairs.networks] == [("model", True), ("reference", False)]
    assert pairs.memory.parts[FROZEN] == pytest.approx(4 * DEMO, rel=1e-3)
    each = single.time.flops / single.time.tokens
    assert pairs.time.flops / pairs.time.tokens == pytest.approx(each * 4 / 3)  # the reference only goes forward


def test_reward_models_and_ppo_without_the_runs_they_come_from(planned):
    reward = planned("reward/demo", length=64)
    assert sum(reward.networks[0].parameters.values()) == DEMO + 128 + 1
    ppo = planned("ppo/demo", length=64)
    assert {net.name: net.trained for net in ppo.networks} == {
        "model": True, "reference": False, "reward": False, "value": True,
    }  # fmt: skip
    assert ppo.memory.parts[FROZEN] == pytest.approx(4 * (2 * DEMO + 129), rel=1e-3)
    assert ppo.memory.parts[WEIGHTS] == pytest.approx(4 * (2 * DEMO + 128), rel=1e-3)
    assert ppo.memory.layers.keys() >= {"model.blocks.0", "value.trunk.blocks.3"}
    trained, all_ = (sum(n.flops_per_token for n in ppo.networks if n.trained or every) for every in (False, True))
    collecting = (all_ + ppo.networks[0].flops_per_token) / 3  # generation goes through the policy once more
    assert ppo.time.flops == pytest.approx(ppo.time.tokens * (trained + collecting))


def test_the_cache_of_a_rollout_is_that_of_all_its_prompts(planned):
    """With so many prompts, and one row a minibatch, collecting holds most."""
    found = planned("ppo/demo", "data.rollout_size=4096", "cluster.micro_batch_size=1", length=64)
    assert found.memory.phase == "rollout"
    small = planned("ppo/demo", "data.rollout_size=2048", "cluster.micro_batch_size=1", length=64)
    assert found.memory.total - small.memory.total > 2048 * 4 * 64 * 2 * 64 * 4  # layers, columns, K and V, channels


def test_knobs_make_it_fit_and_the_next_larger_micro_batch_does_not(planned):
    base = ("pretrain/demo", "precision=32-true", *ADAMW, "global_batch_size=64", "+data.validation_batch_size=1")
    whole = planned(*base)
    room = 0.45 * (whole.memory.total - whole.machine.reserved) + whole.machine.reserved
    tight = planned(*base, memory=room / machines.GIB)
    assert tight.fits is False
    (knob,) = tight.knobs[:1]
    (override,) = knob.overrides
    micro = int(override.partition("=")[2])
    assert override.startswith("cluster.micro_batch_size=")
    again = planned(*base, override, memory=room / machines.GIB)
    assert again.fits
    assert again.memory.total == knob.total
    assert not planned(*base, f"cluster.micro_batch_size={2 * micro}", memory=room / machines.GIB).fits


def test_what_fits_no_device_is_sharded_over_more(planned):
    found = planned("ladder/1.3b", "cluster=gpus", "cluster.devices=1", "cluster.micro_batch_size=1", memory=16)
    assert found.fits is False
    overrides = found.knobs[0].overrides
    assert overrides[0] == "strategy=fsdp2"
    assert overrides[1].startswith("cluster.devices=")
    assert found.knobs[0].total <= 16 * machines.GIB


@pytest.mark.parametrize(
    ("overrides", "wishes", "sentence"),
    [
        ((), {"mfu": 1.5}, "--mfu 1.5 is a share of the peak"),
        ((), {"memory": -1.0}, "--memory -1.0 must be positive"),
        ((), {"length": 100}, "--length 100 contradicts data.sequence_length=256"),
        (("global_batch_size=6", "cluster.micro_batch_size=4"), {}, "global_batch_size=6 does not divide"),
        (("model.heads=3",), {}, "model.width=128 must be an even multiple of model.heads=3"),
        (("cluster=gpus", "cluster.devices=8"), {"device": "h900"}, "--device h900 is not known"),
        (
            ("strategy={_target_: lightning.pytorch.strategies.SingleDeviceStrategy}",),
            {},
            "there is no plan for strategy SingleDeviceStrategy",
        ),
        (("model.widht=3",), {}, "widht"),
        (("max_steps=0",), {}, "max_steps=0 must be at least 1"),
    ],
)
def test_mistakes_are_named(planned, overrides, wishes, sentence):
    with pytest.raises(UserError) as caught:
        planned("pretrain/demo", *overrides, **wishes)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A10", "a10"), ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"),
        ("Tesla V100-SXM2-32GB", "v100"), ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA H200", "h200"),
        ("a100", "a100"), ("NVIDIA GeForce GTX 1080", None),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_what_its_driver_calls_it(name, row):
    assert machines.recognised(name) == (machines.GPUS[row] if row else None)


def test_the_time_on_a_gpu_is_that_of_its_data_sheet(planned):
    found = planned("ladder/124m", "cluster=gpus", "cluster.devices=2", rate=None, device="a100", mfu=0.5)
    assert found.time.seconds == pytest.approx(found.time.flops / (0.5 * 312e12 * 2))
    assert found.time.device_hours == pytest.approx(2 * found.time.seconds / 3600)
    single = planned("ladder/124m", "cluster=gpus", "cluster.devices=2", "precision=32-true", rate=None, device="a100")
    assert single.machine.peak == 19.5e12


def test_the_command_line(capsys):
    words = ["plan", "experiment=pretrain/demo", "cluster=cpu", "--rate", "1000", "--memory", "4"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "1,000,576" in out
    assert "fits: " in out
    assert cli.main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["networks"][0]["total"] == DEMO
    assert shown["fits"] is True
    assert sum(shown["memory_bytes"]["parts"].values()) == pytest.approx(shown["memory_bytes"]["total"])
    assert cli.main(["plan", "experiment=shards/demo"]) == 2
    assert "athanor prepare experiment=shards/demo" in capsys.readouterr().err
    assert cli.main(["plan"]) == 2
    assert "athanor plan experiment=NAME" in capsys.readouterr().err


def test_nothing_is_allocated_however_large(planned):
    """70B parameters, whose weights alone would be 257 GiB."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = planned("ladder/70b", "cluster=gpus", "cluster.devices=8", "cluster.nodes=8", "strategy=fsdp2",
                    "model.layers=4", "cluster.micro_batch_size=1", device="h200")  # fmt: skip
    assert sum(found.networks[0].parameters.values()) > 3e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
