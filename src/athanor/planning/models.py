"""The models of an experiment as they are built, without the weights of the runs that they come from: from a finished
run its model.json, from a run yet to be made the experiment that will make it.
"""

import json
import math
from pathlib import Path
from typing import Any

from athanor.config import Experiment
from athanor.errors import UserError
from athanor.models import ARCHITECTURE
from athanor.planning.errors import NoPlanError

LOAD = "athanor.models.load"
SPLIT = ("heads", "kv_heads", "hidden")


def with_models(experiment: Experiment) -> dict[str, Any]:
    """The config, with the constructor in the place of every `athanor.models.load`."""
    upstream = {str(entry.directory): entry for entry in experiment.upstream()}
    return resolved(experiment.config, upstream)


def resolved(node: Any, upstream: dict[str, Experiment]) -> Any:
    if isinstance(node, list):
        return [resolved(value, upstream) for value in node]
    if not isinstance(node, dict):
        return node
    if node.get("_target_") != LOAD:
        return {key: resolved(value, upstream) for key, value in node.items()}
    found = described(str(node["run"]), upstream)
    if node.get("dropout") is not None:
        found.get("trunk", found)["dropout"] = node["dropout"]
    return found


def described(run: str, upstream: dict[str, Experiment]) -> dict[str, Any]:
    """The constructor of a run's model.

    Raises:
        UserError: the run holds no model, or what will make it is not known.
    """
    path = Path(run) / ARCHITECTURE
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    parent = upstream.get(run)
    if parent is None or not isinstance(parent.config.get("model"), dict):
        name = parent.name if parent else run
        raise NoPlanError(f"{name} holds no model that could be planned with; name a training run, or finish it first")
    return dict(resolved(parent.config["model"], upstream))


def one_of(config: dict[str, Any], parts: int) -> dict[str, Any]:
    """The config of what one of `parts` devices holds under tensor parallelism: every model with so much fewer heads
    and hidden channels.

    Raises:
        UserError: one of these does not divide.
    """
    from athanor.models.feedforward import default_hidden

    def narrowed(node: Any) -> Any:
        if not isinstance(node, dict):
            return [narrowed(value) for value in node] if isinstance(node, list) else node
        if node.get("_target_") != "athanor.models.transformer.Transformer":
            return {key: narrowed(value) for key, value in node.items()}
        own = dict(node)
        own["kv_heads"] = own.get("kv_heads") or own["heads"]
        own["head_width"] = own.get("head_width") or own["width"] // own["heads"]
        kind = own.get("feedforward") or {}
        if isinstance(kind, list) or kind.get("hidden"):
            raise NoPlanError("tensor parallelism is planned for one kind of feed-forward layer, sized by model.hidden")
        own["hidden"] = own.get("hidden") or default_hidden(own["width"], kind.get("activation", "swiglu"))
        for key in SPLIT:
            if own[key] % parts:
                raise UserError(f"strategy.tensor_parallel_size={parts} must divide model.{key}={own[key]}")
            own[key] //= parts
        return own

    return config if parts == 1 else narrowed(config)


def staged(config: dict[str, Any], stages: int) -> dict[str, Any]:
    """The config of what one stage of a pipeline holds: its model with so much fewer layers, and with both ends of the
    network, which no stage has; whole rounds of parts that the layers take in turn.
    """

    def shortened(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "layers" not in node:
            return {key: shortened(value) for key, value in node.items()}
        rounds = [node.get("feedforward"), (node.get("attention") or {}).get("patterns")]
        unit = math.lcm(*(len(parts) for parts in rounds if isinstance(parts, list) and parts))
        return {**node, "layers": -(-node["layers"] // (stages * unit)) * unit}

    return config if stages == 1 else config | {"model": shortened(config["model"])}
