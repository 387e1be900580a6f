"""What every algorithm shares: the optimizer, exact global means, per-step seeding, frozen models left out of
checkpoints.

Lightning averages losses over accumulated micro-batches and ranks. `loss` undoes that, so that what is minimised is the
sum over the global batch divided by the batch's own `normalizer`, whatever the split.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from athanor.errors import UserError
from athanor.functional import labelled_logps, up_to_last_label
from athanor.models import require_form, require_language_model, require_reward_model
from athanor.models.transformer import routing_metrics
from athanor.schedules import Schedule, bind

TOKEN_FIELDS = ("tokens_BT", "chosen_BT", "rejected_BT")


class Algorithm(LightningModule):
    """Base class. A subclass reads: `training_step` -> `self.loss(sum, normalizer, **sums to log)`.

    Args:
        model: the network that is trained and saved.
        optimizer: from parameter groups to an optimizer (a partial of its class).
        schedule: from `max_steps` to a function from step to learning-rate factor (a partial of `athanor.schedules`).

    `seed` and `log_every` are set by `athanor.train`.
    """

    trains: Literal["language model", "reward model", "encoder", "encoder-decoder"] = "language model"
    fixed_shapes = False  # whether all batches of training are of one shape
    asks_first = False  # whether a step asks each network once for hidden states, `model` last, and then reads them

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        schedule: Callable[..., Schedule],
    ):
        super().__init__()
        if self.trains == "language model":
            require_language_model(model, "model")
        elif self.trains == "reward model":
            require_reward_model(model, "model")
        else:
            require_form(model, self.trains, "model")
        self.model = model
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.seed, self.log_every = 0, 10
        self.grad_norm: Tensor | None = None
        self.watch: Callable[[Optimizer, Tensor, Tensor], None] | None = None  # loss, gradient norm, before the step
        self.rate = 0.0
        self.batch_ended = 0.0  # when the last micro-batch and its callbacks were through
        self.frozen: list[str] = []
        self.unsaved: list[str] = []
        self.last_report: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._step_of_sums = -1

    # --- optimisation ---------------------------------------------------------------------------------------------

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def parts(self) -> list[tuple[str, float]]:
        """(prefix of parameter names, factor on the learning rate): what is clipped by a norm of its own. Together they
        hold every trainable parameter.
        """
        return [("", 1.0)]

    def configure_optimizers(self) -> Any:
        """Weight decay on matrices only: not on norms, biases or embeddings. Logits come from no `hidden` one. A
        parameter's learning rate is the optimizer's, times its part's `lr_factor`, times its model's own
        `width_factor` (muP), unless the optimizer dropped that from the group as not made for it.
        """
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        settings: dict[str, dict[str, Any]] = {"hidden": {}, "output": {"hidden": False}, "rest": {"weight_decay": 0.0}}
        own = {
            f"{part}.{name}": factor
            for part, module in self.named_children()
            for name, factor in getattr(module, "learning_rate_factors", {}).items()
        }
        groups: dict[tuple[str, str, float, float], list[nn.Parameter]] = {}
        for prefix, factor in self.parts():
            for kind in settings:
                groups[prefix, kind, factor, 1.0] = []
            for name, parameter in self.trainable():
                if name.startswith(prefix):
                    matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
                    kind = ("output" if name.endswith("output.weight") else "hidden") if matrix else "rest"
                    groups.setdefault((prefix, kind, factor, own.get(name, 1.0)), []).append(parameter)
        assert sum(map(len, groups.values())) == len(self.trainable()), "parts() must hold each parameter once"
        chosen = [
            {"params": parameters, **settings[kind], "lr_factor": factor, "width_factor": width}
            for (_, kind, factor, width), parameters in groups.items()
            if parameters
        ]
        try:
            optimizer = self.make_optimizer(chosen)
        except (TypeError, ValueError) as error:  # what torch's own constructors, called only now, refuse
            if isinstance(error, TypeError):
                if "required positional argument" not in str(error):
                    raise
                raise UserError(f"optimizer: {error}; give it a value, as optimizer.NAME=VALUE.") from error
            raise UserError(str(error) if str(error).startswith("optimizer") else f"optimizer: {error}") from error
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0) * group.get("width_factor", 1.0)
        schedule = LambdaLR(optimizer, bind(self.make_schedule, self.trainer.max_steps, self.tokens_per_step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def tokens_per_step(self) -> int | None:
        """Tokens of a global batch; None where samples are of different lengths."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.sample_tokens and data.plan.global_batch_size * data.sample_tokens

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips each part by its global norm, unless the strategy does so itself."""
        clip = self._of_strategy("clip", nn.utils.clip_grad_norm_)
        if clip is None:
            return
        limit = gradient_clip_val or float("inf")
        parts = [[p for name, p in self.trainable() if name.startswith(prefix)] for prefix, _ in self.parts()]
        self.clipped(optimizer, [clip(part, limit) for part in parts])

    def clipped(self, optimizer: Optimizer, norms: list[Tensor]) -> None:
        """Keeps the first part's norm for the log, and has the step judged."""
        self.grad_norm = norms[0]
        if self.watch is not None:
            whole = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
            self.watch(optimizer, self._sums["loss"], whole)

    def add_frozen(self, name: str, model: nn.Module, *, saved: bool = False) -> None:
        """Adds a model that is used but never trained: eval mode always, no gradients, not in checkpoints unless
        `saved`.
        """
        self.frozen.append(name)
        if not saved:
            self.unsaved.append(name)
        self.add_module(name, model.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> "Algorithm":
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    # --- processes ------------------------------------------------------------------------------------------------

    def _of_strategy(self, name: str, default: Any) -> Any:
        """What the strategy that the processes share the work by has of its own."""
        return getattr(getattr(self.trainer, "strategy", None), name, default)

    @property
    def replicas(self) -> int:
        """Processes that train on data of their own, or groups of processes that share such data."""
        return self._of_strategy("replicas", self.trainer.world_size)

    def whole(self, network: nn.Module, everywhere: bool = True) -> AbstractContextManager[nn.Module]:
        """One of this algorithm's networks (or a copy) that can be used without the other processes; to enter the
        context, all of them are needed.

        Args:
            everywhere: on every rank; else only on rank 0, and perhaps on the CPU.
        """
        gather = self._of_strategy("whole", None)
        return nullcontext(network) if gather is None else gather(network, everywhere)

    # --- state ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        prefixes = tuple(f"{name}." for name in self.unsaved)
        if prefixes:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(prefixes)}
            self.strict_loading = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {k for k in self.state_dict() if not k.startswith(tuple(f"{name}." for name in self.unsaved))}
        missing = own - set(checkpoint["state_dict"])
        assert not missing, f"the checkpoint lacks {sorted(missing)[:3]}"
        self.strict_loading = not self.unsaved
        self.recount(checkpoint)

    def recount(self, checkpoint: dict[str, Any]) -> None:
        """Numbers the micro-batches that have been as if all had been of this training's size: Lightning counts them to
        tell where a step ends, and the checkpoint's may have been larger or smaller.
        """
        step, parts = checkpoint["global_step"], self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        before = round(progress["total"]["ready"] / step) if step else parts
        for counts in (progress["total"], progress["current"]):
            counts |= {name: count + step * (parts - before) for name, count in counts.items()}

    def seed_of(self, batch_idx: int) -> int:
        return (self.seed * 1_000_003 + batch_idx) * 4_099 + self._of_strategy("replica", self.global_rank)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout's randomness is a function of (seed, micro-batch, replica), so nothing about it needs to be
        remembered.
        """
        torch.manual_seed(self.seed_of(batch_idx))
        self.rate = float(self.lr_schedulers().get_last_lr()[0])  # type: ignore[union-attr]

    # --- losses and metrics ---------------------------------------------------------------------------------------

    def begin_sums(self) -> None:
        """At a step's first micro-batch, forgets what was summed in the last step."""
        if self._step_of_sums != self.trainer.global_step:
            self._sums, self._step_of_sums = {}, self.trainer.global_step

    def loss(self, loss_sum: Tensor, normalizer: Tensor, **sums: Tensor) -> Tensor:
        """What `training_step` returns. Each of `sums`, divided by `normalizer` and added up over the global batch, is
        logged as `train/<name>`; so is the loss. Routers' auxiliary losses, means over rows, are averaged over the
        micro-batches and added.
        """
        self.begin_sums()
        parts = self.trainer.accumulate_grad_batches * self._of_strategy("averaged", self.replicas)
        shares = {name: value.detach() / normalizer for name, value in {"loss": loss_sum, **sums}.items()}
        loss = loss_sum / normalizer * parts
        for name, module in self.named_children():
            read = None if name in self.frozen else getattr(module, "auxiliary_loss", None)
            if read is not None and (auxiliary := read()) is not None:
                loss = loss + auxiliary
                label = "auxiliary_loss" if name == "model" else f"{name}_auxiliary_loss"
                shares[label] = auxiliary.detach() / parts
        for name, share in shares.items():
            self._sums[name] = self._sums[name] + share if name in self._sums else share
        return loss

    def logs_at(self, step: int) -> bool:
        """Whether this micro-batch has just completed an optimizer step whose metrics are due."""
        completed = step != self._step_of_sums
        return completed and (step % self.log_every == 0 or step in (1, self.trainer.max_steps))

    def tokens(self, batch: Any) -> int:
        """Tokens of this rank's micro-batch, padding included."""
        return sum(x.numel() for name, x in batch._asdict().items() if name in TOKEN_FIELDS)

    @property
    def flops_per_token(self) -> float:
        model = self._of_strategy("plain", {}).get("model", self.model)
        return model.flops_per_token(self.trainer.datamodule.typical_length)  # type: ignore[attr-defined]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batch_ended = time.perf_counter()
        if self.trainer.global_step != self._step_of_sums:  # gradients need not lie in memory during the next forward
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad(set_to_none=True)
        if not self.logs_at(self.trainer.global_step):
            return
        metrics = {f"train/{k}": float(self.trainer.strategy.reduce(v, reduce_op="sum")) for k, v in self._sums.items()}
        if self.grad_norm is not None:
            metrics["train/grad_norm"] = float(self.grad_norm)
        metrics["train/lr"] = self.rate
        counts: dict[int, Tensor] = getattr(self.model, "routing_counts", dict)()
        for layer, count in counts.items():
            counts[layer] = self.trainer.strategy.reduce(count, reduce_op="sum")
        metrics |= routing_metrics(counts)
        self.report(metrics)

    def report(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Sends metrics to every logger, at an optimizer step: by default the last one that is complete."""
        self.last_report |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step if step is None else step)

    def validated(self, count: Tensor, **sums: Tensor) -> None:
        """Adds to `validation/<name>`: the sum of sums over the sum of counts, of all batches and ranks."""
        for name, value in sums.items():
            old = self._validation.setdefault(name, torch.zeros(2, dtype=torch.float64, device=count.device))
            old += torch.stack((value.detach().double(), count.double()))

    def on_validation_epoch_start(self) -> None:
        self._validation: dict[str, Tensor] = {}

    def on_validation_epoch_end(self) -> None:
        self._validation = self._of_strategy("shared", dict)(self._validation)
        if not self._validation:
            return
        metrics = {}
        for name, total in self._validation.items():
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
            metrics[f"validation/{name}"] = float(total[0] / total[1].clamp(min=1))
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        if not self.trainer.sanity_checking:
            self.report(metrics)


def response_states(model: nn.Module, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Hidden states for `response_logps`, [B, T, D]."""
    states_BTD: Tensor = model.hidden_states(tokens_BT, valid_BT=up_to_last_label(labels_BT))  # type: ignore[operator]
    return states_BTD


def response_logps(
    model: nn.Module,
    tokens_BT: Tensor,
    labels_BT: Tensor,
    states_BTD: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """log p(label) of each labelled position, float32 [B, T], 0 elsewhere; logits are made for labelled positions
    only.

    Args:
        states_BTD: the model's `response_states` where they are there already.
    """

    def to_logits(hidden: Tensor) -> Tensor:
        return model.logits(hidden).float() / temperature  # type: ignore[operator]

    if states_BTD is None:
        states_BTD = response_states(model, tokens_BT, labels_BT)
    return labelled_logps(states_BTD, labels_BT, to_logits)
