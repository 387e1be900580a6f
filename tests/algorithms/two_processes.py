"""Trains each algorithm for a few steps on so many processes and writes what rank 0 has in the end.

python tests/algorithms/two_processes.py PROCESSES TOKENIZER PROMPTS OUTPUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test_invariance
import test_ppo
import torch

from athanor.data.prompts import PromptData
from small import fit


def main(world: int, tokenizer: str, prompts: str, output: str) -> None:
    results = {}
    for name in (*test_invariance.ALGORITHMS, "ppo"):
        if name == "ppo":
            algorithm = test_ppo.make(tokenizer)
            data = PromptData([prompts], tokenizer, test_ppo.NEW, 16, validation_fraction=0.2)
        else:
            algorithm, data = test_invariance.make(name)
        metrics = fit(algorithm, data, steps=5, batch=8, micro=2, world=world, clip=0.5)
        assert algorithm.trainer.world_size == world
        weights = {key: value.clone() for key, value in algorithm.state_dict().items()}
        results[name] = {"weights": weights, "metrics": metrics.history}
        rank = algorithm.global_rank
    if rank == 0:
        torch.save(results, output)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
