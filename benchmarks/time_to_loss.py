"""Seconds of training to the validation loss that a GPT-2-style baseline ends at: tiny Shakespeare, by character.

    .venv/bin/python benchmarks/time_to_loss.py --text input.txt.gz --peers PEERS [--seeds 1 2 3] [--threads 1]

Both sides: 4 layers x 128, 4 heads, context 64, batch 12, the first nine tenths of the text to train on and all of the
rest to judge by. Baseline: litgpt's GPT with LayerNorm and GELU, AdamW at 1e-3 to 1e-4 by a cosine over 2,000 steps,
clipping, in bfloat16 autocast (1.25x its float32 here). Athanor: `athanor.train.fit` with the Llama form and Muon, over
640 steps, a schedule that ends there. The two train in turns; only training is timed, and only the end is judged: the
loss at the last step must be at most the baseline's. Settings were chosen on seed 11. `benchmarks/pretrain.py` says how
to install litgpt.
"""

import argparse
import gzip
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

CONTEXT, BATCH, STEPS, OURS = 64, 12, 2000, 640
SHAPE = {"width": 128, "layers": 4, "heads": 4}


def characters(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(train, validation, number of different characters)."""
    with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
        text = file.read()
    known = sorted(set(text))
    place = {character: index for index, character in enumerate(known)}
    tokens = np.array([place[character] for character in text], dtype=np.uint16)
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:], len(known)


class Turn:
    """Counts steps; after those of a turn it reports the time they took and waits for the next turn."""

    def __init__(self, pipe):
        self.pipe, self.left = pipe, 0
        self.wait()

    def wait(self) -> None:
        self.left = self.pipe.recv()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step(self, last: bool) -> None:
        self.left -= 1
        if self.left == 0 or last:
            self.pipe.send((time.perf_counter() - self.wall, time.process_time() - self.cpu, last))
            self.wait()


def loss_of(logits_of, tokens: np.ndarray) -> float:
    """Mean nats of a character over all whole windows."""
    import torch

    rows = (len(tokens) - 1) // CONTEXT
    stream = torch.from_numpy(tokens[: rows * CONTEXT + 1].astype(np.int64))
    inputs, labels = stream[:-1].view(rows, CONTEXT), stream[1:].view(rows, CONTEXT)
    total = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(256), labels.split(256)):
            total += float(
                torch.nn.functional.cross_entropy(logits_of(x).flatten(0, 1).float(), y.flatten(), reduction="sum")
            )
    return total / labels.numel()


def baseline(pipe, text: str, seed: int) -> None:
    import torch
    from litgpt import GPT, Config

    train, validation, vocabulary = characters(text)
    torch.manual_seed(seed)
    model = GPT(
        Config(
            n_layer=SHAPE["layers"], n_embd=SHAPE["width"], n_head=SHAPE["heads"], intermediate_size=512,
            block_size=CONTEXT, vocab_size=vocabulary, padded_vocab_size=vocabulary, bias=False,
            parallel_residual=False, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
        )
    )  # fmt: skip
    model.apply(model._init_weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def factor(step: int) -> float:
        done = (step - 100) / (STEPS - 100)
        return (step + 1) / 101 if step < 100 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    stream, windows = torch.from_numpy(train.astype(np.int64)), torch.arange(CONTEXT + 1)
    turn = Turn(pipe)
    for step in range(STEPS):
        rows = stream[torch.randint(len(stream) - CONTEXT, (BATCH, 1)) + windows]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step + 1 == STEPS:
            pipe.send(loss_of(model, validation))
        turn.step(step + 1 == STEPS)


def athanor(pipe, text: str, seed: int) -> None:
    from lightning import Callback

    from athanor import config, train
    from athanor.data.base import Data
    from athanor.data.pretraining import PackedRows
    from athanor.runs.context import RunContext

    parts = dict(zip(("train", "validation"), characters(text)))
    vocabulary = characters(text)[2]

    class Characters(Data):
        """The text as one document, in place of the shards that the experiment names."""

        typical_length = CONTEXT
        tokenizer = SimpleNamespace(vocabulary_size=vocabulary)

        def __init__(self):
            super(Data, self).__init__()
            self.validation_batch_size = 256

        def open(self, split: str, context: int) -> PackedRows:
            tokens = parts[split]
            return PackedRows(SimpleNamespace(tokens=tokens, offsets=np.array([0, len(tokens)])), CONTEXT)

    class Watch(Callback):
        def on_train_start(self, *_) -> None:
            self.turn = Turn(pipe)

        def on_train_batch_end(self, trainer, algorithm, *_) -> None:
            last = trainer.global_step == OURS
            if last:
                algorithm.model.eval()
                pipe.send(loss_of(algorithm.model, parts["validation"]))
            self.turn.step(last)

    made, assembled = train.make_trainer, train.assemble

    def watched(*arguments):
        trainer = made(*arguments)
        trainer.callbacks.append(Watch())
        return trainer

    train.make_trainer = watched
    train.assemble = lambda config: (assembled(config)[0], Characters())
    settings = SHAPE | {"kv_heads": 4, "context": CONTEXT, "vocabulary_size": vocabulary}
    chosen = config.load(
        "pretrain/demo",
        [f"model.{name}={value}" for name, value in settings.items()]
        + ["+model.tie_embeddings=false", "schedule=linear", "schedule.warmup_steps=30", "schedule.final_fraction=0"]
        + ["optimizer.lr=8e-3", "optimizer.matrix_lr=0.018", f"global_batch_size={BATCH}", f"max_steps={OURS}"]
        + [f"validate_every_n_steps={OURS + 1}", f"seed={seed}", "cluster.accelerator=cpu"],
    )
    with tempfile.TemporaryDirectory() as folder:
        train.fit(chosen, RunContext(Path(folder), chosen))


def side(name: str, pipe, text: str, seed: int, threads: int, peers: str | None) -> None:
    if peers:
        sys.path.append(peers)
    import torch

    torch.set_num_threads(threads)
    {"baseline": baseline, "athanor": athanor}[name](pipe, text, seed)


def compare(options: argparse.Namespace, seed: int) -> dict[str, tuple[float, float, float]]:
    """side -> (wall seconds, CPU-seconds, loss)."""
    context, pipes, times, losses = multiprocessing.get_context("spawn"), {}, {}, {}
    for name in ("baseline", "athanor"):
        pipes[name], there = context.Pipe()
        arguments = (name, there, options.text, seed, options.threads, options.peers)
        context.Process(target=side, args=arguments, daemon=True).start()
        there.close()
        times[name] = [0.0, 0.0]
    left = ["baseline", "athanor"]
    while left:
        for name in list(left):
            pipes[name].send({"baseline": 50, "athanor": 16}[name])
            found = pipes[name].recv()
            if isinstance(found, float):
                losses[name], found = found, pipes[name].recv()
            times[name][0] += found[0]
            times[name][1] += found[1]
            if found[2]:
                left.remove(name)
    for process in multiprocessing.active_children():
        process.terminate()
    return {name: (times[name][0], times[name][1], losses[name]) for name in times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="tiny Shakespeare's input.txt or input.txt.gz")
    parser.add_argument("--peers", help="folder where litgpt is installed, unless beside athanor")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    ratios, cpu = [], []
    print(
        "| seed | baseline: loss, seconds, CPU-seconds | athanor | reached | ratio of seconds |\n|---|---|---|---|---|"
    )
    for seed in options.seeds:
        found = compare(options, seed)
        (wall, used, loss), (mine, spent, reached) = found["baseline"], found["athanor"]
        ratios.append(mine / wall if reached <= loss else math.inf)
        cpu.append(spent / used if reached <= loss else math.inf)
        print(
            f"| {seed} | {loss:.4f}, {wall:.1f}, {used:.1f} | {reached:.4f}, {mine:.1f}, {spent:.1f} "
            f"| {'yes' if reached <= loss else 'no'} | {ratios[-1]:.3f} |",
            flush=True,
        )
    print(f"\nFIGURE time_to_loss_ratio {statistics.median(ratios):.3f}")
    print(f"FIGURE time_to_loss_ratio_worst {max(ratios):.3f}")
    print(f"FIGURE time_to_loss_ratio_cpu {statistics.median(cpu):.3f}")


if __name__ == "__main__":
    main()
