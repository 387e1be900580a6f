"""Networks that know nothing of training, and the two functions that keep them in a run's directory."""

import json
import os
from pathlib import Path

from torch import nn

from athanor.errors import UserError
from athanor.models.parts import node

WEIGHTS, ARCHITECTURE = "model.safetensors", "model.json"


def save(model: nn.Module, directory: Path) -> None:
    """Writes the weights (safetensors) and the constructor's arguments (JSON), each under a temporary name first."""
    from safetensors.torch import save_model

    description = {"_target_": f"{type(model).__module__}.{type(model).__qualname__}", **model.arguments}  # type: ignore[dict-item]
    for name, write in (
        (WEIGHTS, lambda path: save_model(model, path)),
        (ARCHITECTURE, lambda path: Path(path).write_text(json.dumps(description, indent=1, default=node) + "\n")),
    ):
        temporary = directory / f".{name}.tmp"
        write(str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(directory / name)


def load(run: str, dropout: float | None = None) -> nn.Module:
    """The model that a finished run produced or imported, its file hashes verified; in eval mode, on the CPU, float32.

    Args:
        dropout: replaces the dropout it was trained with.

    Raises:
        UserError: no such run, one without a model, or a file that does not match the manifest.
    """
    from hydra.utils import instantiate
    from safetensors.torch import load_model

    from athanor.runs.store import open_run

    source = open_run(run)
    if ARCHITECTURE not in source.manifest["outputs"]:
        raise UserError(
            f"{run} is a {source.manifest['kind']} run and holds no model; name a training run or an import."
        )
    description = json.loads(source.path(ARCHITECTURE).read_text())
    if dropout is not None:
        description.get("trunk", description)["dropout"] = dropout
    model = instantiate(description, _convert_="all")
    load_model(model, str(source.path(WEIGHTS)))
    model.source = source.id
    return model.eval()


FORMS = {
    "decoder": "a decoder, which goes on with what it has read",
    "encoder": "an encoder, which fills in tokens and cannot say the next one",
    "encoder-decoder": "an encoder-decoder, which reads a prompt apart from its answer",
    "reward model": "a reward model, which gives scores",
}


def form_of(model: nn.Module) -> str:
    """A key of `FORMS`."""
    return str(model.form) if hasattr(model, "logits") else "reward model"


def generates(model: nn.Module) -> bool:
    return form_of(model) in ("decoder", "encoder-decoder")


def require_form(model: nn.Module, form: str, what: str) -> None:
    """Raises UserError if the model, which is `what` of the config, is not of the form."""
    if (own := form_of(model)) != form:
        name = getattr(model, "source", type(model).__name__)
        must = FORMS[form].partition(",")[0]
        raise UserError(f"{name} is {FORMS[own]}; {what} must be {must} here.")


def require_language_model(model: nn.Module, what: str) -> None:
    """Raises UserError if the model, which is `what` of the config, does not predict the next token."""
    if (own := form_of(model)) != "decoder":
        name = getattr(model, "source", type(model).__name__)
        raise UserError(
            f"{name} is {FORMS[own]}, and no language model, as {what} must be; name a run of pretraining, SFT, DPO or "
            "PPO."
        )


def require_reward_model(model: nn.Module, what: str) -> None:
    """Raises UserError if the model, which is `what` of the config, does not give scores."""
    if not hasattr(model, "reward"):
        name = getattr(model, "source", type(model).__name__)
        raise UserError(f"{name} is no reward model, as {what} must be; name a run of reward modelling.")
