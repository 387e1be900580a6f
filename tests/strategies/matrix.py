"""Trains every algorithm under a strategy, in so many processes of one training, and writes what became of it.

python matrix.py TOKENIZER PROMPTS OUTPUT     then on stdin lines of STRATEGY PROCESSES [WHAT...]

The imports are done once, and the processes forked. Each answers with a line `done`, or `failed` and what was said.
OUTPUT/STRATEGY-PROCESSES/RANK.pt holds, for each (algorithm, accumulation, kind): metrics and whole final weights
(rank 0), the samples in the order in which this rank took them, and how many numbers of parameters and optimizer states
it held, or the sentence by which the strategy refuses it; for ("again", algorithm) those weights after a stop in the
middle and a start from the checkpoint, which is OUTPUT/STRATEGY-PROCESSES/ALGORITHM.ckpt; and for
("from single", algorithm) after a start from that of `single 1`.

WHAT limits that to algorithms, or to single things such as `dpo/4/adamw` or `again/dpo`. `kill/dpo` does something
else: it trains dpo/4/adamw with checkpoints, kills all processes by SIGKILL once there are some, and starts them again;
("killed", "dpo") holds the weights at the end and the `step` from which that went on. `save/dpo` only leaves dpo.ckpt,
`share/dpo` the same as shares.ckpt, a folder with each process's share. `load/FOLDER/dpo` takes up FOLDER/dpo.ckpt of
another strategy, saves it again as from-FOLDER-dpo.ckpt, and takes the next step: ("load", FOLDER/dpo) holds what the
model says that was taken up, what an unsharded one says that has those weights, and the next step's metrics and weights
after it (rank 0).
"""

import faulthandler
import json
import math
import multiprocessing
import os
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))

import test_ppo
import torch
import yaml
from lightning import Callback
from test_invariance import Tokens, sequences
from torch import nn
from torch.distributed.tensor import DTensor

from athanor import shares, strategies
from athanor.acceleration import accelerate
from athanor.algorithms.base import Algorithm
from athanor.algorithms.dpo import DPO
from athanor.algorithms.ppo import PPO
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.callbacks.averaging import AveragedIterates, ExponentialAverage
from athanor.callbacks.checkpoints import Checkpoints, newest
from athanor.data.base import Data
from athanor.data.instructions import Conversations
from athanor.data.preferences import Pairs
from athanor.data.pretraining import PackedRows
from athanor.data.prompts import PromptData
from athanor.errors import UserError
from athanor.models.heads import ScalarModel
from athanor.optimizers import LAMB, Lion, MuonWithAdamW, schedule_free_adamw
from athanor.schedules import cosine
from small import REPOSITORY, Given, decoder, fit, optimizer

ALGORITHMS = ("pretraining", "sft", "reward", "dpo", "ppo")
STEPS, BATCH = 6, 16
LAYERS = {"ppo": 2}  # no stages for it
PATIENCE = 1800  # seconds; then a process says where it hangs, and ends
OPTIMIZERS = {
    "adamw": optimizer(3e-3, betas=(0.9, 0.95), eps=1e-6, fused=True),
    "sgd": optimizer(0.3, torch.optim.SGD),
    "muon": optimizer(3e-3, MuonWithAdamW, matrix_lr=0.02),
    "lamb": optimizer(3e-3, LAMB, eps=1e-6),
    "lion": optimizer(3e-4, Lion),
    "schedule_free": partial(schedule_free_adamw, lr=3e-3, eps=1e-6),
}
CELLS = [(name, split, kind) for name in ALGORITHMS for split in (1, 4) for kind in ("adamw", "sgd")]
# What goes with some strategies only; others refuse it. An optimizer, or AdamW and something beside it.
SEE_MATRICES = ("single", "ddp", "fsdp2", "hsdp")
FOLLOWED = (*SEE_MATRICES, "fsdp", "fsdp2_tp")
EXTRAS = {
    "muon": SEE_MATRICES, "lamb": SEE_MATRICES, "schedule_free": FOLLOWED, "lion": None, "recompute": None,
    "average": (*SEE_MATRICES, "fsdp2_tp", "deepspeed_zero1", "deepspeed_zero2"),
}  # fmt: skip


def strategy(name: str, precision: str = "32-true", **changes: Any) -> Any:
    """As the file of that name in configs/strategy has it; a name may be `pipeline.stages=4`."""
    name, *others = name.split(".")
    changes |= {key: int(value) if value.isdigit() else value for key, _, value in (x.partition("=") for x in others)}
    node = yaml.safe_load((REPOSITORY / "configs/strategy" / f"{name}.yaml").read_text())
    node = node["strategy"] if "_target_" not in node else {**node, **changes}
    if isinstance(node, dict) and node.get("stage") == 3:
        node.setdefault("persistence_threshold", 0)  # all that these small models have is below the default
    return strategies.make({"strategy": node, "precision": precision, "cluster": {"devices": 1, "nodes": 1}})


def orthogonalised(grad: torch.Tensor, coefficients: tuple[float, ...], steps: int, eps: float) -> torch.Tensor:
    """Muon's iterations, in float64: torch's are in bfloat16 and make of rounding alone a new direction, so that no two
    splittings of a sum end with the same weights.
    """
    a, b, c = coefficients
    x = (grad.mT if grad.shape[0] > grad.shape[1] else grad).double()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if grad.shape[0] > grad.shape[1] else x).to(grad.dtype)


torch.optim._muon._zeropower_via_newtonschulz = orthogonalised  # type: ignore[attr-defined]


def make(name: str, kind: str, tokenizer: str, prompts: str) -> tuple[Algorithm, Data]:
    """The same weights and samples every time."""
    shape: dict[str, Any] = {"kv_heads": 2, "heads": 4, "width": 48, "hidden": 64, "layers": LAYERS.get(name, 4)}
    arguments: tuple = (OPTIMIZERS.get(kind, OPTIMIZERS["adamw"]), partial(cosine, warmup_steps=2))

    def network(seed: int, vocabulary: int = 29) -> nn.Module:
        return decoder(vocabulary, seed, **shape)

    def scorer(seed: int, vocabulary: int = 29) -> ScalarModel:
        model = ScalarModel(network(seed, vocabulary))
        nn.init.normal_(model.head.weight, std=0.3)
        return model

    if name == "pretraining":
        return Pretraining(network(0), *arguments), Given(PackedRows(Tokens(60, 1), 24))
    if name == "sft":
        return SFT(network(0), *arguments), Given(Conversations(sequences(23, 1), 0))
    pairs = Given(Pairs(sequences(23, 2), sequences(23, 3), 0))
    if name == "reward":
        return RewardModeling(scorer(0), *arguments), pairs
    if name == "dpo":
        return DPO(network(0), *arguments, reference=network(7), beta=0.2), pairs
    own = test_ppo.VOCABULARY
    algorithm = PPO(
        network(2, own), *arguments, reference=network(3, own), reward=scorer(5, own), value=scorer(6, own),
        tokenizer=tokenizer, max_new_tokens=test_ppo.NEW, kl_coefficient=0.1, value_lr_factor=0.5,
    )  # fmt: skip
    return algorithm, PromptData([prompts], tokenizer, test_ppo.NEW, 2 * BATCH, validation_fraction=0.2)


def watched(data: Data) -> list[list[int]]:
    """The samples of each batch that is to be trained on, as they are taken."""
    seen: list[list[int]] = []
    attach = data.attach

    def attached(*arguments: Any) -> None:
        attach(*arguments)
        batch = data.train.batch

        def noted(indices: Any, places: Any, normalizer: int) -> Any:
            seen.append([int(i) for i in indices])
            return batch(indices, places, normalizer)

        data.train.batch = noted  # type: ignore[method-assign]

    data.attach = attached  # type: ignore[method-assign]
    return seen


def held(algorithm: Algorithm) -> dict[str, int]:
    """Numbers that this process holds of parameters, those of frozen networks, and the optimizer's states."""

    def count(tensors: Any) -> int:
        pieces = [getattr(t, "ds_tensor", t) for t in tensors]
        return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in pieces)

    frozen = [p for name, p in algorithm.named_parameters() if name.split(".")[0] in algorithm.frozen]
    (own,) = algorithm.trainer.strategy.optimizers
    states = [t for entry in own.state.values() for t in entry.values() if isinstance(t, torch.Tensor) and t.ndim]
    return {"parameters": count(algorithm.parameters()), "frozen": count(frozen), "states": count(states)}


def whole_weights(algorithm: Algorithm) -> dict[str, torch.Tensor]:
    """Of the networks that are trained, and of averages."""
    weights = {}
    for name, child in algorithm.named_children():
        if name not in algorithm.unsaved:
            with algorithm.whole(child, everywhere=False) as network:
                weights |= {f"{name}.{key}": value.clone() for key, value in network.state_dict().items()}
    return weights


def micro_batch(chosen: Any, world: int, accumulation: int) -> int:
    """The micro-batch of a process, or of those that share one."""
    shared = math.prod(getattr(chosen, name, 1) for name in ("tensor_parallel", "processes", "parts"))
    return BATCH // (world // shared) // accumulation


RESUMED = ("dpo", "ppo")  # a frozen network; four networks, two parts, rollouts and a buffer
STOP = 3  # in the middle of a rollout


def train(name: str, world: int, rank: int, given: tuple[str, str], output: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    results: dict[tuple, dict] = {}
    extras = [("pretraining", 1, kind) for kind, fitting in EXTRAS.items() if fitting is None or name in fitting]

    def wanted(*key: Any) -> bool:
        return not only or key[0] in only or "/".join(map(str, key)) in only

    for cell in [cell for cell in (*CELLS, *extras) if wanted(*cell)]:
        algorithm, data = make(cell[0], cell[2], *given)
        beside: list[Callback] = [AveragedIterates()] if cell[2] == "schedule_free" else []
        if cell[2] == "average":
            beside.append(ExponentialAverage(0.9))
        if cell[2] == "recompute":
            accelerate(algorithm, {"recompute": "full", "compile": False}, "cpu", 1.0, output)
        chosen = strategy(name)
        seen = watched(data)
        try:
            metrics = fit(
                algorithm, data, steps=STEPS, batch=BATCH, micro=micro_batch(chosen, world, cell[1]), clip=0.5,
                world=world, strategy=chosen, validate_every=2, callbacks=beside,
            )  # fmt: skip
        except UserError as error:
            results[cell] = {"refused": str(error)}
            continue
        results[cell] = {"held": held(algorithm), "seen": seen, "weights": whole_weights(algorithm)}
        if rank == 0:
            results[cell]["metrics"] = metrics.history
    for kind in [kind for kind in RESUMED if wanted(kind) or wanted("again", kind) or wanted("save", kind)]:
        saved, single = output / f"{kind}.ckpt", output.parent / "single-1" / f"{kind}.ckpt"
        turns: list[tuple[str, dict[str, Any]]] = [
            ("stopped", {"stop": STOP, "save": saved}),
            ("again", {"resume": saved}),
        ]
        turns += [("from single", {"resume": single})] if single.exists() and name != "single" else []
        turns = turns[:1] if f"save/{kind}" in only else turns
        for turn, settings in turns:
            algorithm, data = make(kind, "adamw", *given)
            with torch.no_grad():
                for parameter in algorithm.model.parameters():
                    parameter.mul_(1.0 if turn == "stopped" else 0.5)  # whatever is not loaded shows
            chosen = strategy(name)
            fit(
                algorithm, data, steps=STEPS, batch=BATCH, micro=micro_batch(chosen, world, 4), clip=0.5, world=world,
                strategy=chosen, validate_every=2, **settings,
            )  # fmt: skip
            if turn != "stopped":
                results[turn, kind] = {"weights": whole_weights(algorithm)}
    for kind in [word.removeprefix("kill/") for word in only if word.startswith("kill/")]:
        (directory := output / f"{kind}-checkpoints").mkdir(exist_ok=True)
        algorithm, data = make(kind, "adamw", *given)
        found = newest(directory)
        chosen = strategy(name)
        fit(
            algorithm, data, steps=STEPS, batch=BATCH, micro=micro_batch(chosen, world, 4), clip=0.5, world=world,
            strategy=chosen, validate_every=2, resume=found, callbacks=[Checkpoints(directory, 1)],
        )  # fmt: skip
        step = int(found.stem.removeprefix("step-")) if found else 0
        results["killed", kind] = {"weights": whole_weights(algorithm), "step": step}
    if "share/dpo" in only:
        algorithm, data = make("dpo", "adamw", *given)
        chosen, directory = strategy(name), output / "shares"
        fit(
            algorithm, data, steps=STEPS, batch=BATCH, micro=micro_batch(chosen, world, 4), clip=0.5, world=world,
            strategy=chosen, validate_every=2, callbacks=[Checkpoints(directory, STOP, sharded=True)],
        )  # fmt: skip
        if rank == 0:
            (found,) = directory.glob("step-*.ckpt")
            assert found.is_dir()
            found.replace(output / "shares.ckpt")
    for word in [word for word in only if word.startswith("load/")]:
        other = word.removeprefix("load/")
        before = output.parent / f"{other}.ckpt"
        algorithm, data = make("dpo", "adamw", *given)
        with torch.no_grad():
            for parameter in algorithm.model.parameters():
                parameter.mul_(0.5)
        taken = TakenUp(output / f"from-{other.replace('/', '-')}.ckpt")
        metrics = fit(
            algorithm, data, steps=STEPS, batch=BATCH, clip=0.5, world=world, strategy=strategy(name),
            validate_every=2, resume=before, stop=STOP + 1, save=output / "next.ckpt",
            callbacks=[taken],
        )  # fmt: skip
        weights = whole_weights(algorithm)
        if rank == 0:
            alone, _ = make("dpo", "adamw", *given)
            alone.load_state_dict(content(before)["state_dict"], strict=False)
            results["load", other] = {
                "logits": taken.logits, "expected": said(alone.model), "weights": weights, "metrics": metrics.history,
            }  # fmt: skip
    torch.save(results, output / f"{rank}.pt")


def preload(name: str) -> None:
    """What a strategy imports late, once for all processes."""
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401

    if "zero" in name:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  # in seconds: it compiles as it is imported


def content(path: Path) -> dict[str, Any]:
    return shares.load(path) if path.is_dir() else torch.load(path, weights_only=True)


class TakenUp(Callback):
    """Saves again what a training begins with, and keeps what its model says."""

    def __init__(self, path: Path):
        self.path = path
        self.logits = torch.empty(0)

    def on_train_start(self, trainer: Any, algorithm: Any) -> None:
        trainer.save_checkpoint(self.path)
        with algorithm.whole(algorithm.model, everywhere=False) as network:
            if trainer.is_global_zero:
                self.logits = said(network)


def said(model: nn.Module) -> torch.Tensor:
    training = model.training
    with torch.no_grad():
        logits = model.eval()(torch.arange(24)[None])
    model.train(training)
    return logits


def process(environment: dict[str, str], said: Path, *arguments: Any) -> None:
    """One rank, forked; what it says goes to a file."""
    out = os.open(said, os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    train(*arguments)


def launch(
    name: str,
    world: int,
    given: tuple[str, str],
    folder: Path,
    only: list[str],
    saved: Path | None = None,
) -> list[int | None]:
    """Starts the ranks, and waits until all have ended, one has failed, or two checkpoints are `saved`; kills what is
    left.

    Returns:
        their exit codes; None of those that were killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(
            target=process,
            args=({**shared, "LOCAL_RANK": str(r)}, folder / f"{r}.txt", name, world, r, given, folder, only),
        )
        for r in range(world)
    ]
    for rank in ranks:
        rank.start()
    while all(rank.exitcode in (None, 0) for rank in ranks) and any(rank.exitcode is None for rank in ranks):
        if saved is not None and len(list(saved.glob("step-*.ckpt"))) > 1:
            break
        time.sleep(0.02)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    return codes


def main(tokenizer: str, prompts: str, output: str) -> None:
    for line in sys.stdin:
        name, count, *only = line.split()
        world, folder = int(count), Path(output) / f"{name}-{count}"
        folder.mkdir(exist_ok=True)
        preload(name)
        given = (tokenizer, prompts)
        for word in [word for word in only if word.startswith("kill/")]:
            saved = folder / f"{word.removeprefix('kill/')}-checkpoints"
            launch(name, world, given, folder, [word], saved)
        codes = launch(name, world, given, folder, only)
        said = "" if not any(codes) else json.dumps([(folder / f"{r}.txt").read_text()[-3000:] for r in range(world)])
        print(f"failed {said}" if said else "done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
