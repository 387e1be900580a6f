"""Tokens per second of pretraining against litgpt and transformers' Trainer: one shape, one set of batches, in turns.

    pip install --target PEERS --no-deps litgpt==0.5.13 jsonargparse typeshed_client docstring_parser accelerate
    .venv/bin/python benchmarks/pretrain.py --peers PEERS [--threads 1] [--rounds 9] [--sides NAME ...]

Each side is a process that waits its turn, so that what else the machine does falls on all of them. A Llama-form
decoder on every side: 6 layers x 384, 6 heads, feed-forward 1024, vocabulary 8192, untied; 16 rows of 256 tokens;
AdamW (fused), clipping. `athanor` is the training of `athanor train`, with Lightning's Trainer, callbacks, data and
attention kept within documents; `athanor loop` is the same step in a bare loop. The peers get the same rows and attend
over whole rows. Needs the run shards/demo (`athanor prepare experiment=shards/demo --with-inputs`).
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROWS, TOKENS, VOCABULARY = 16, 256, 8192
SHAPE = {"width": 384, "layers": 6, "heads": 6, "hidden": 1024}
STEPS = 2
SIDES = {
    "athanor bf16-mixed": ("athanor", "bf16-mixed", True),
    "athanor bf16-mixed eager": ("athanor", "bf16-mixed", False),
    "athanor bf16-true": ("athanor", "bf16-true", True),
    "athanor loop bf16-mixed": ("loop", "bf16-mixed", True),
    "litgpt bf16-mixed": ("litgpt", "bf16-mixed", False),
    "litgpt bf16-mixed compiled": ("litgpt", "bf16-mixed", True),
    "litgpt bf16-true": ("litgpt", "bf16-true", False),
    "litgpt bf16-true compiled": ("litgpt", "bf16-true", True),
    "transformers bf16-mixed": ("transformers", "bf16-mixed", False),
    "transformers bf16-mixed compiled": ("transformers", "bf16-mixed", True),
}


class Turn:
    """Counts a side's steps; at the end of its turn it reports and waits for the next."""

    def __init__(self, pipe):
        self.pipe, self.left = pipe, 3  # the first steps warm up and compile

    def step(self) -> None:
        self.left -= 1
        if self.left:
            return
        wall, cpu = (
            (0.0, 0.0)
            if not hasattr(self, "wall")
            else (time.perf_counter() - self.wall, time.process_time() - self.cpu)
        )
        self.pipe.send((wall, cpu, resident("VmHWM")))
        self.left = self.pipe.recv()
        if not self.left:
            os._exit(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.wall, self.cpu = time.perf_counter(), time.process_time()


def resident(name: str) -> int:
    """VmHWM (the peak) or VmRSS of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def experiment(precision: str, compile: bool, threads: int):
    from athanor import config

    settings = SHAPE | {"kv_heads": SHAPE["heads"], "context": TOKENS, "vocabulary_size": VOCABULARY}
    return config.load(
        "pretrain/demo",
        [f"model.{name}={value}" for name, value in settings.items() if name != "hidden"]
        + [f"+model.hidden={SHAPE['hidden']}", "+model.tie_embeddings=false", f"precision={precision}"]
        + ["optimizer=adamw", "~optimizer.matrix_lr", f"global_batch_size={ROWS}", "max_steps=100000"]
        + ["validate_every_n_steps=100000", "data.validation_samples=1", f"cluster.compile={str(compile).lower()}"]
        + [f"cluster.threads={threads}", "cluster.accelerator=cpu"],
    )


def rows(threads: int):
    """The batches that athanor trains on."""
    from athanor import train
    from athanor.data.plan import BatchPlan

    config = experiment("32-true", False, threads).config
    algorithm, data = train.assemble(config)
    data.attach(BatchPlan(config["seed"], 100000, ROWS, 1, 0, None), algorithm.model.context)
    stream = data.stream()
    return lambda step: stream[step]


def athanor(pipe, precision: str, compile: bool, threads: int) -> None:
    from lightning import Callback

    from athanor import train
    from athanor.runs.context import RunContext

    turn, made = Turn(pipe), train.make_trainer

    class Watch(Callback):
        def on_train_batch_end(self, *_) -> None:
            turn.step()

    def watched(*arguments):
        trainer = made(*arguments)
        trainer.callbacks.append(Watch())
        return trainer

    train.make_trainer = watched
    chosen = experiment(precision, compile, threads)
    with tempfile.TemporaryDirectory() as folder:
        train.fit(chosen, RunContext(Path(folder), chosen))


def loop(pipe, precision: str, compile: bool, threads: int) -> None:
    import torch

    from athanor import train
    from athanor.acceleration import accelerate, keep_freed_memory

    turn, batch_of = Turn(pipe), rows(threads)
    config = experiment(precision, compile, threads).config
    keep_freed_memory()
    algorithm, _ = train.assemble(config)
    accelerate(algorithm, config["cluster"], "cpu", 0.0, Path(tempfile.gettempdir()))
    optimize(
        turn, algorithm.model, batch_of, lambda batch: algorithm.losses(batch)[0] / batch.normalizer, torch.bfloat16
    )


def litgpt(pipe, precision: str, compile: bool, threads: int) -> None:
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    turn, batch_of = Turn(pipe), rows(threads)
    config = Config(
        n_layer=SHAPE["layers"], n_embd=SHAPE["width"], n_head=SHAPE["heads"], intermediate_size=SHAPE["hidden"],
        block_size=TOKENS, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, rotary_percentage=1.0, bias=False,
        parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    model = GPT(config)
    if precision == "bf16-true":
        model = model.bfloat16()
    run = torch.compile(model) if compile else model

    def loss(batch):
        return chunked_cross_entropy(run(batch.tokens_BT), batch.labels_BT)

    optimize(turn, model, batch_of, loss, torch.bfloat16 if precision == "bf16-mixed" else None)


def optimize(turn: Turn, model, batch_of, loss, autocast) -> None:
    """The bare loop."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    step = 0
    while True:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            value = loss(batch_of(step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        turn.step()


def transformers(pipe, precision: str, compile: bool, threads: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    turn, batch_of = Turn(pipe), rows(threads)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=SHAPE["width"], intermediate_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"], max_position_embeddings=TOKENS,
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            tokens = batch_of(index // ROWS).tokens_BT[index % ROWS]
            return {"input_ids": tokens, "labels": tokens}

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            turn.step()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=ROWS, max_steps=100000, bf16=True, use_cpu=True,
            torch_compile=compile, optim="adamw_torch_fused", report_to=[], logging_steps=10, save_strategy="no",
            disable_tqdm=True, learning_rate=1e-3, weight_decay=0.1, max_grad_norm=1.0,
        )  # fmt: skip
        Trainer(LlamaForCausalLM(config), arguments, train_dataset=Rows(), callbacks=[Watch()]).train()


def side(name: str, pipe, threads: int, peers: str | None) -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if peers:
        sys.path.append(peers)
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    kind, precision, compile = SIDES[name]
    globals()[kind](pipe, precision, compile, threads)


def matmul_rate() -> float:
    """FLOP per CPU-second of a large bfloat16 product."""
    import torch

    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    torch.mm(a, b)
    started = time.process_time()
    for _ in range(3):
        torch.mm(a, b)
    return 3 * 2 * 2048**3 / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="folder where the peers are installed, unless beside athanor")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    context, sides = multiprocessing.get_context("spawn"), {}
    for name in options.sides:
        here, there = context.Pipe()
        process = context.Process(target=side, args=(name, there, options.threads, options.peers), daemon=False)
        process.start()
        there.close()
        try:
            here.recv()  # warm
            sides[name] = (here, process)
            print(f"{name} is warm", file=sys.stderr)
        except EOFError:
            print(f"{name} did not start", file=sys.stderr)

    import torch

    torch.set_num_threads(options.threads)
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in sides}
    rates = []
    for turn in range(options.rounds):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            pipe, _ = sides[name]
            pipe.send(STEPS)
            found[name].append(pipe.recv())
        rates.append(matmul_rate())
    for pipe, process in sides.values():
        pipe.send(0)
        process.join()
    report(found, statistics.median(rates), options.threads)


def report(found: dict[str, list[tuple[float, float, int]]], rate: float, threads: int) -> None:
    import torch

    from athanor.models.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(VOCABULARY, context=TOKENS, tie_embeddings=False, **SHAPE)
    flops, count = model.flops_per_token(TOKENS), STEPS * ROWS * TOKENS
    speed = {name: statistics.median(count / wall for wall, _, _ in turns) for name, turns in found.items()}
    frugal = {name: statistics.median(count / cpu for _, cpu, _ in turns) for name, turns in found.items()}
    memory = {name: statistics.median(peak for _, _, peak in turns) / 2**20 for name, turns in found.items()}
    rounds = len(next(iter(found.values())))
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}; threads: {threads}; {rounds} rounds of {STEPS}"
        f" steps; a bfloat16 product of 2048^3: {rate / 1e9:.0f} GFLOP per CPU-second\n"
    )
    print(
        "| side | tokens/s | tokens per CPU-second | of the product's rate | peak memory, MiB |\n|---|---|---|---|---|"
    )
    for name in sorted(found, key=lambda name: -speed[name]):
        share = frugal[name] * flops / rate
        print(f"| {name} | {speed[name]:,.0f} | {frugal[name]:,.0f} | {share:.0%} | {memory[name]:,.0f} |")
    print()

    def ratio(mine: str, theirs: str, part: int) -> float:
        return statistics.median(b[part] / a[part] for a, b in zip(found[mine], found[theirs]))

    ours = [name for name in found if SIDES[name][0] == "athanor"]
    others = [name for name in found if SIDES[name][0] in ("litgpt", "transformers")]
    if ours and others:
        mine, theirs = max(ours, key=speed.__getitem__), max(others, key=speed.__getitem__)
        print(f"best: {mine}; best peer: {theirs}")
        print(f"FIGURE pretrain_ratio {ratio(mine, theirs, 0):.3f}")
        print(f"FIGURE pretrain_ratio_per_cpu_second {ratio(mine, theirs, 1):.3f}")
        print(f"FIGURE pretrain_share_of_matmul_rate {frugal[mine] * flops / rate:.3f}")
        print(f"FIGURE pretrain_memory_over_best_peer {memory[mine] / min(memory[name] for name in others):.3f}")
    if {"athanor bf16-mixed", "athanor loop bf16-mixed"} <= set(found):
        overhead = ratio("athanor loop bf16-mixed", "athanor bf16-mixed", 1) - 1
        print(f"FIGURE trainer_overhead {overhead:.4f}")
    print(json.dumps({"tokens_per_second": speed, "per_cpu_second": frugal, "peak_mib": memory}))


if __name__ == "__main__":
    main()
