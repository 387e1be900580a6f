"""Sharding by DeepSpeed's ZeRO."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.errors import UserError
from athanor.models.transformer import Block
from athanor.shares import Flat, Reads, Share, Stored
from athanor.strategies.sharded import Sharded


class ZeRO(Sharded):
    """DeepSpeed's: sharded are the optimizer's states (stage 1), gradients too (2), parameters too (3).

    Args:
        offload: keeps the optimizer's states in the CPU's memory and takes its steps there; stage 3 only.
        persistence_threshold: parameters with fewer elements are not sharded at stage 3.
    """

    shares = True
    clip: Any = None  # the engine does, within its step

    def __init__(self, stage: Literal[1, 2, 3], offload: bool = False, persistence_threshold: int = 100_000):
        if stage not in (1, 2, 3):
            raise UserError(f"strategy.stage={stage} must be 1, 2 or 3.")
        if offload and stage != 3:
            raise UserError("strategy.offload=true needs strategy.stage=3.")
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError("This strategy needs DeepSpeed, which runs on Linux: pip install 'deepspeed>=0.19,<0.20'.")
        super().__init__()
        self.stage, self.offload, self.persistence_threshold = stage, offload, persistence_threshold
        self.cuts_alike = stage < 3

    def setup_distributed(self) -> None:
        super().setup_distributed()
        if self.root_device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        if self.root_device.type == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, for a minute
        deepspeed.comm.init_distributed(
            dist_backend=self._process_group_backend, auto_mpi_discovery=False, verbose=False, dist_init_required=False
        )

    @property
    def settings(self) -> dict[str, Any]:
        """DeepSpeed's own configuration, from ours."""
        algorithm = self.algorithm
        trainer, plan = algorithm.trainer, algorithm.trainer.datamodule.plan  # type: ignore[attr-defined]
        zero: dict[str, Any] = {"stage": self.stage, "contiguous_gradients": True, "overlap_comm": False}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = self.persistence_threshold
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.root_device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": plan.micro,
            "gradient_accumulation_steps": plan.accumulation,
            "gradient_clipping": float(trainer.gradient_clip_val or 0.0),
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }

    def shard(self, algorithm: Algorithm) -> None:
        import deepspeed

        if self.stage < 3:
            algorithm.to(self.root_device)
        for module in algorithm.modules():  # the engine moves parameters as it shards them, but no buffers
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))
        self.setup_optimizers(algorithm.trainer)
        (optimizer,) = self.optimizers
        self.order = [list(group["params"]) for group in optimizer.param_groups]
        self.part_of = [self._part(group[0]) for group in self.order]
        self.engine, self.zero, *_ = deepspeed.initialize(
            model=algorithm,
            optimizer=optimizer,
            model_parameters=[p for p in algorithm.parameters() if p.requires_grad],
            config=self.settings,
            dist_init_required=False,
        )
        self.model = self.engine
        algorithm.to(self.root_device)  # no more than its own note of where it is
        if self.stage == 3:
            layered = {id(p) for m in algorithm.modules() if isinstance(m, Block) for p in m.parameters()}
            for parameter in algorithm.parameters():
                if id(parameter) not in layered:  # gathered for the whole of a step
                    deepspeed.zero.register_external_parameter(algorithm, parameter)
        optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]  # the engine's business
        self.optimizers = [optimizer]
        for step in ("training_step", "validation_step"):  # the engine switches off an autocast around it
            setattr(algorithm, step, self._within_precision(getattr(algorithm, step)))
        self._clip_by_parts()

    def _within_precision(self, step: Callable) -> Callable:
        def run(*arguments: Any) -> Any:
            with self.precision_plugin.forward_context():
                return step(*arguments)

        return run

    # --- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, *arguments: Any) -> Any:
        accumulating = self.algorithm.trainer.fit_loop._should_accumulate()
        self.engine.set_gradient_accumulation_boundary(not accumulating)
        return super().training_step(*arguments)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *_: Any, **__: Any) -> Tensor:
        self.engine.backward(closure_loss, scale_wrt_gas=False)  # Lightning has divided it already
        return self.precision_plugin.post_backward(closure_loss, self.algorithm)

    def optimizer_step(self, optimizer: Any, closure: Callable, model: Any = None, **_: Any) -> Any:
        result = self.precision_plugin._wrap_closure(self.algorithm, optimizer, closure)
        self.engine.step()
        self.algorithm.clipped(optimizer, self.part_norms)
        return result

    def _part(self, parameter: nn.Parameter) -> int:
        """Of the algorithm's `parts`, the number of the one that holds a parameter."""
        (name,) = (name for name, own in self.algorithm.named_parameters() if own is parameter)
        return next(i for i, (prefix, _) in enumerate(self.algorithm.parts()) if name.startswith(prefix))

    def _clip_by_parts(self) -> None:
        """DeepSpeed clips all groups of an optimizer by one norm; let it take that of the part each belongs to."""
        zero, parts = self.zero, len(self.algorithm.parts())
        clip = zero.unscale_and_clip_grads

        def note(norms: list[Tensor], part_of: list[int]) -> None:
            finite = [norm.float().where(norm >= 0, torch.inf) for norm in norms]  # -1 stands for those that are not
            self.part_norms = [
                torch.linalg.vector_norm(torch.stack([n for n, own in zip(finite, part_of) if own == part]))
                for part in range(parts)
            ]

        if self.stage == 3:
            part_of = [self.part_of[zero.sub_group_to_group_id[i]] for i in range(len(zero.fp16_groups))]
            norm_groups = zero._get_norm_groups

            def noted() -> list[Tensor]:
                norms = norm_groups()
                note(norms, part_of)
                return norms

            zero._get_norm_groups = noted
            zero.unscale_and_clip_grads = lambda group, _: clip(group, self.part_norms[part_of[group]])
            return

        def scaled_global_norm(norm_type: int = 2) -> Tensor:
            norms = [
                zero.get_grad_norm_direct(zero.averaged_gradients[i], zero.params_in_partition[i])
                for i in range(len(zero.bit16_groups))
            ]
            note(norms, self.part_of)
            self.turns = iter(self.part_of)
            return torch.linalg.vector_norm(torch.stack(norms))

        zero.scaled_global_norm = scaled_global_norm
        zero.unscale_and_clip_grads = lambda grads, _: clip(grads, self.part_norms[next(self.turns)])

    # --- whole tensors --------------------------------------------------------------------------------------------

    @contextmanager
    def _gathered(self, parameters: list[nn.Parameter], writer: int | None = None) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        import deepspeed
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        away = [p for p in parameters if cast(Any, p).ds_status == ZeroParamStatus.NOT_AVAILABLE]
        with deepspeed.zero.GatheredParameters(away, modifier_rank=writer):
            yield

    def full(self, network: nn.Module, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in network.named_parameters():
            if self.stage == 3 and parameter.requires_grad:  # however it is just now: gathered, on its way, or neither
                yield name, safe_get_full_fp32_param(parameter)
                continue
            with self._gathered([parameter]):
                value = parameter.detach().clone()
            yield name, value

    def fill(self, parameters: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        parameters, reads, pieces = dict(parameters), Reads(), dict[str, Tensor]()
        own = dict(self.algorithm.named_parameters())
        for name, value in parameters.items():
            if isinstance(value, Stored) and self.stage == 3 and own[name].requires_grad:
                pieces[name], share = self._piece(own[name])
                reads.add(value, share)
            elif isinstance(value, Stored):
                parameters[name] = torch.empty(value.shape, dtype=value.dtype)
                reads.add(value, parameters[name])
        reads.now()
        for name, parameter in own.items():
            if name in pieces:
                cast(Any, parameter).ds_tensor.data.copy_(pieces[name])
                self._set_own(parameter, pieces[name])
            elif name in parameters:
                value = parameters[name].to(self.root_device)
                with self._gathered([parameter], writer=0):
                    if self.stage < 3 or self.is_global_zero:
                        parameter.copy_(value)
                if self.stage < 3:
                    safe_set_full_fp32_param(parameter, value)
                else:
                    self._set_local(parameter, value)

    def share(self, tensor: Any, name: str) -> Share:
        from deepspeed.utils import safe_get_local_fp32_param

        parameter = self.algorithm.get_parameter(name)
        if self.stage == 3:
            assert parameter.requires_grad, "DeepSpeed keeps no whole copy of others, and none of them is saved"
            return self._piece(parameter, safe_get_local_fp32_param(parameter))[1]
        return Share(tensor, tensor.shape, [torch.arange(size) for size in tensor.shape])  # one of them will write it

    def _share_of_state(self, parameter: nn.Parameter, key: str) -> Share:
        from deepspeed.utils import safe_get_local_optimizer_state

        if self.stage == 3:
            return self._piece(parameter, safe_get_local_optimizer_state(parameter, key))[1]
        held = cast(Any, parameter)._hp_mapping
        if held is None:
            return Flat(torch.empty(0), parameter.shape, 0)
        return Flat(held.get_hp_fragment(key), parameter.shape, held.lp_fragment_address.start)

    def _piece(self, parameter: nn.Parameter, own: Tensor | None = None) -> tuple[Tensor, Flat]:
        """Stage 3: this rank's piece of a parameter, or of a state of it, with padding at its end; the share in it."""
        whole = cast(Any, parameter)
        size = whole.partition_numel()
        start = size * self.global_rank
        own = torch.zeros(size) if own is None else own
        return own, Flat(own[: max(0, min(size, whole.ds_numel - start))], whole.ds_shape, start)

    def _set_local(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Stage 3: this rank's piece of a whole tensor."""
        size = cast(Any, parameter).partition_numel()
        flat = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        self._set_own(parameter, flat.narrow(0, size * self.global_rank, size), key)

    def _set_own(self, parameter: nn.Parameter, mine: Tensor, key: str | None = None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if key is None:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, key)

    def _flat(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """The flat pieces that the optimizer works on, each with the parameters of which it holds pieces."""
        if self.stage == 3:
            return list(zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_groups))
        return list(zip(self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups))

    def full_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        places = {id(p): i for i, p in enumerate(p for group in self.order for p in group)}
        state: dict[int, dict[str, Any]] = {}
        for flat, parameters in self._flat():
            kept = optimizer.state.get(flat, {})
            if self.stage < 3:  # the engine does so after the first group's first step: the others have no state yet
                lazy_init_hp_params_optimizer_state(parameters, flat, {flat: kept})
            for key in sorted(kept):
                whole = isinstance(kept[key], Tensor) and kept[key].shape == flat.shape
                for parameter in parameters:
                    value: Any = kept[key]
                    if whole and self.sharing:
                        value = self._share_of_state(parameter, key)
                    elif whole:
                        value = safe_get_full_optimizer_state(parameter, key)
                    if self.is_global_zero or self.sharing:
                        value = value.detach().cpu().clone() if isinstance(value, Tensor) else value
                        state.setdefault(places[id(parameter)], {})[key] = value
        groups, first = [], 0
        for group, own in zip(optimizer.param_groups, self.order):
            plain = {key: value for key, value in group.items() if key != "params"}
            groups.append({**plain, "params": list(range(first, first + len(own)))})
            first += len(own)
        return {"state": state, "param_groups": groups}

    def fill_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        places = {id(p): i for i, p in enumerate(p for group in self.order for p in group)}
        reads, pieces = Reads(), list[tuple[nn.Parameter, str, Tensor]]()
        for flat, parameters in self._flat():
            entries = [state["state"].get(places[id(p)], {}) for p in parameters]
            whole = [key for key, v in entries[0].items() if isinstance(v, Tensor | Stored) and len(v.shape)]
            kept = {key: value for key, value in entries[0].items() if key not in whole}
            kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kept.items()}
            optimizer.state[flat] = kept | {key: torch.zeros_like(flat) for key in whole}
            if self.stage < 3:
                from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

                lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.state)
            for parameter, entry in zip(parameters, entries):
                for key in whole:
                    if isinstance(entry[key], Stored):
                        if self.stage == 3:
                            piece, share = self._piece(parameter)
                            pieces.append((parameter, key, piece))
                        else:
                            share = cast(Flat, self._share_of_state(parameter, key))
                        reads.add(entry[key], share)
                        continue
                    value = entry[key].to(flat.device)
                    if self.stage == 3:
                        self._set_local(parameter, value, key)
                    else:
                        cast(Any, parameter).set_full_hp_param(value, key)
        reads.now()
        for parameter, key, piece in pieces:
            self._set_own(parameter, piece, key)
        for group, loaded in zip(optimizer.param_groups, state["param_groups"]):
            group.update({key: value for key, value in loaded.items() if key != "params"})
