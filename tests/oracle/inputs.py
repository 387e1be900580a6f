"""What both sides of an oracle test compute on: shapes, weights, sequences, numbers. NumPy only.

Weights come from `numpy.random.RandomState`, whose stream is frozen for all time, so only the answers are stored.
"""

import numpy as np

SHAPES = {
    "grouped": {
        "vocabulary_size": 23, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "hidden": 40, "context": 1024,
        "rope_theta": 500.0, "norm_eps": 1e-5, "tie_embeddings": True,
    },
    "untied": {
        "vocabulary_size": 19, "width": 24, "layers": 2, "heads": 3, "kv_heads": 3, "hidden": 56, "context": 1024,
        "rope_theta": 10_000.0, "norm_eps": 1e-3, "tie_embeddings": False,
    },
}  # fmt: skip
PAD = 0
SEED = {"policy": 1, "reference": 2}


def llama_weights(shape: dict, seed: int) -> dict[str, np.ndarray]:
    """Weights under the names of transformers' LlamaForCausalLM, large enough that every part matters; norms near 1."""
    rng = np.random.RandomState(seed)
    width, hidden, channels = shape["width"], shape["hidden"], shape["width"] // shape["heads"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.3 * rng.standard_normal(width)).astype(np.float32)

    weights = {"model.embed_tokens.weight": 0.4 * matrix(shape["vocabulary_size"], width) * np.float32(np.sqrt(width))}
    for i in range(shape["layers"]):
        layer = f"model.layers.{i}."
        weights |= {
            f"{layer}input_layernorm.weight": norm(),
            f"{layer}self_attn.q_proj.weight": matrix(width, width),
            f"{layer}self_attn.k_proj.weight": matrix(shape["kv_heads"] * channels, width),
            f"{layer}self_attn.v_proj.weight": matrix(shape["kv_heads"] * channels, width),
            f"{layer}self_attn.o_proj.weight": matrix(width, width),
            f"{layer}post_attention_layernorm.weight": norm(),
            f"{layer}mlp.gate_proj.weight": matrix(hidden, width),
            f"{layer}mlp.up_proj.weight": matrix(hidden, width),
            f"{layer}mlp.down_proj.weight": matrix(width, hidden),
        }
    weights["model.norm.weight"] = norm()
    if not shape["tie_embeddings"]:
        weights["lm_head.weight"] = matrix(shape["vocabulary_size"], width)
    return weights


def score_weight(shape: dict) -> np.ndarray:
    """The head of a reward model, [1, width]."""
    return np.random.RandomState(7).standard_normal((1, shape["width"])).astype(np.float32) / 8


def tokens(shape: dict, rows: int, length: int) -> np.ndarray:
    return np.random.RandomState(3).randint(1, shape["vocabulary_size"], (rows, length))


POSITIONS = [0, 1, 3, 50, 51, 400, 401, 402, 900, 1000, 1023]  # gaps, for rotation by large angles
DOCUMENTS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
DOCUMENT_POSITIONS = [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1]

LEARNING_RATE, STEPS = 0.05, 3
PAIRS = [  # prompt, chosen, rejected: unequal lengths everywhere
    ([1, 5, 9, 4], [7, 8, 2], [8, 7, 7, 11, 2]),
    ([1, 3], [12, 2], [2]),
    ([1, 6, 6, 20, 14, 3], [9, 10, 11, 12, 13, 2], [9, 2]),
    ([1, 22], [15, 16, 2], [15, 17, 2]),
]
BETA, CENTER = 0.3, 0.05
CONVERSATIONS = [([1, 5, 9, 4], [7, 8, 2]), ([1, 3], [12, 2]), ([1, 6, 6, 20, 14, 3], [9, 10, 11, 12, 13, 2]),
                 ([1, 22], [2])]  # fmt: skip
MICRO_BATCH = 2

PPO = {"kl_coefficient": 0.15, "gamma": 0.97, "lam": 0.9, "clip": 0.2, "value_clip": 0.15, "value_weight": 0.3}
KL_CONTROL = {"coefficient": 0.2, "target": 6.0, "horizon": 10_000, "steps": 256, "kl": [2.0, 5.9, 6.3, 40.0]}


def ppo_numbers() -> dict[str, np.ndarray]:
    """A rollout of 5 responses over 8 columns, and policy and critic some updates later; float32 [5, 8], scores [5]."""
    rng = np.random.RandomState(11)
    mask = np.zeros((5, 8), bool)
    for row, (start, stop) in enumerate([(0, 8), (2, 8), (3, 4), (1, 6), (4, 7)]):
        mask[row, start:stop] = True
    old = -np.abs(rng.standard_normal((5, 8))) - 0.1
    numbers = {
        "old_logps": old,
        "ref_logps": old + 0.5 * rng.standard_normal((5, 8)),
        "logps": old + 0.3 * rng.standard_normal((5, 8)),
        "values": rng.standard_normal((5, 8)),
        "new_values": rng.standard_normal((5, 8)),
        "scores": 2 * rng.standard_normal(5),
    }
    return {name: value.astype(np.float32) for name, value in numbers.items()} | {"mask": mask}
