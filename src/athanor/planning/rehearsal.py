"""A training built on tensors without memory, so that whatever its parts refuse is said before a job has waited for
hours or a run has begun: what `athanor train --check` and `athanor submit` do once all keys are known to be right.
"""

import math
from pathlib import Path
from typing import Any

import torch

from athanor import lean
from athanor.config import Experiment, build
from athanor.errors import UserError
from athanor.planning.errors import NoPlanError
from athanor.planning.models import with_models
from athanor.runs.store import unfinished_inputs

MARGIN = 1.1  # the plan is right to a tenth


def rehearse(experiment: Experiment) -> None:
    """Builds the model, algorithm, optimizer, callbacks, strategy and data module of a training, and asks each what it
    makes of the others. No data is read and nothing is allocated. What a run that is yet to be made will hold is taken
    from its experiment; what that does not say is left out.

    Raises:
        UserError: the training would refuse it; the first reason found.
    """
    missing = [str(entry.directory) for entry in unfinished_inputs(experiment)]
    try:
        config = with_models(experiment)
    except NoPlanError:  # the weights come from elsewhere
        return
    if any(_mentions(config[part], missing) for part in ("model", "algorithm")):
        return  # grown from a run that is not there yet
    with torch.device("meta"):
        build(config["model"])  # first, and alone: it takes no more than torch
    _rehearse_with_lightning(config, with_data=not _mentions(config["data"], missing))


def _rehearse_with_lightning(config: dict[str, Any], with_data: bool) -> None:
    from torch._subclasses import FakeTensorMode

    with lean.imports(config):
        from athanor import strategies, train
    from athanor.callbacks.checkpoints import Checkpoints
    from athanor.data.plan import BatchPlan
    from athanor.planning.layout import layout_of
    from athanor.planning.plan import devices_of
    from athanor.planning.step import stand_in

    train.check(config)
    strategy, replicas, devices = strategies.make(config), 1, None
    try:
        devices = replicas = devices_of(config["cluster"]) * int(config["cluster"]["nodes"])
        replicas = layout_of(config["strategy"], devices).replicas
    except NoPlanError:  # only the machine that trains knows how many; or the strategy is the user's own
        pass
    plan = BatchPlan(
        seed=config["seed"], max_steps=config["max_steps"], global_batch_size=config["global_batch_size"],
        world_size=replicas, micro_batch_size=config["cluster"]["micro_batch_size"],
    )  # fmt: skip
    plan.check()
    with FakeTensorMode(allow_non_fake_inputs=True):
        algorithm = train.make_algorithm(config)
        algorithm._trainer = stand_in(config, plan)
        algorithm.configure_optimizers()
    callbacks = [build(node) for node in config.get("callbacks", {}).values()]
    callbacks.append(Checkpoints(Path(), **config["checkpoint"]))
    if devices is not None:
        strategies.check(strategy, devices, callbacks, algorithm)
    if with_data:
        build(config["data"]).check(algorithm.model)


def check_memory(experiment: Experiment) -> None:
    """Holds the plan's memory of a device against what the cluster's config says that it has. Only for rows of one
    length: where they differ, the plan is for the longest.

    Raises:
        UserError: it does not fit, by more than the plan may be wrong; with what would make it fit.
    """
    from athanor.planning import show
    from athanor.planning.plan import Wishes, plan

    try:
        found = plan(experiment, Wishes(rate=1.0))
    except NoPlanError:
        return
    if found.shape.kind != "rows" or found.memory.total <= MARGIN * (found.machine.memory or math.inf):
        return
    raise UserError("\n  - ".join((f"{experiment.name} {show.verdict(found)}", *map(show.knob_line, found.knobs))))


def _mentions(node: Any, directories: list[str]) -> bool:
    if isinstance(node, dict):
        return any(_mentions(value, directories) for value in node.values())
    if isinstance(node, list):
        return any(_mentions(value, directories) for value in node)
    return isinstance(node, str) and any(node.startswith(directory) for directory in directories)
