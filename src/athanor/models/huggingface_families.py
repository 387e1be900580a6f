"""Families of Hugging Face: what their config.json says in our terms and back, and where their tensors lie in ours.

Llama 2 and 3, Mistral, Qwen2 (and 2.5), Qwen3, Mixtral, GPT-2. Whether a model is of a family is not a list of rules:
its config is written, read back, and must give the same architecture (`family_of`).
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from athanor.errors import UserError
from athanor.models.attention import Attention
from athanor.models.dropout import Dropout
from athanor.models.feedforward import Activation, FeedForward
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.patterns import Full, Pattern, Window
from athanor.models.positions import Learned, Rotary
from athanor.models.scaling import Linear, Llama3, Scaling, YaRN
from athanor.models.transformer import Transformer

Config = dict[str, Any]


class Part(NamedTuple):
    """A tensor of theirs as rows of one of ours."""

    name: str
    start: int
    stop: int
    expert: int | None = None
    transposed: bool = False


def rotary_of(config: Config) -> tuple[float, Scaling | None]:
    """theta and scaling, from `rope_parameters` or from `rope_theta` and `rope_scaling` of older configs."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    default = 1e6 if config["model_type"] == "mixtral" else 10_000.0
    theta = float(rope.pop("rope_theta", None) or config.get("rope_theta") or default)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if (share := rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"config.json has partial_rotary_factor={share}, which no family here knows.")
    before = rope.pop("original_max_position_embeddings", None) or config["max_position_embeddings"]
    if kind == "default":
        return theta, None
    factor = float(rope.pop("factor"))
    scaling: Scaling
    if kind == "linear":
        scaling = Linear(factor)
    elif kind == "llama3":
        scaling = Llama3(factor, before, float(rope.pop("low_freq_factor")), float(rope.pop("high_freq_factor")))
    elif kind == "yarn" and rope.pop("truncate", True):
        fast, slow = float(rope.pop("beta_fast", None) or 32), float(rope.pop("beta_slow", None) or 1)
        scaling = YaRN(factor, before, fast, slow, rope.pop("attention_factor", None))
    else:
        raise UserError(
            f"config.json has the rotary scaling {kind}, which is not known; known are linear, yarn, llama3."
        )
    if rope := {key: value for key, value in rope.items() if value is not None}:
        raise UserError(f"config.json says {', '.join(rope)} of its rotary scaling {kind}, which is not known.")
    return theta, scaling


def rope_parameters(rotary: Rotary) -> Config:
    parameters: Config = {"rope_theta": rotary.theta, "rope_type": "default"}
    match rotary.scaling:
        case Linear(factor):
            parameters |= {"rope_type": "linear", "factor": factor}
        case Llama3(factor, before, low, high):
            parameters |= {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": before,
                           "low_freq_factor": low, "high_freq_factor": high}  # fmt: skip
        case YaRN(factor, before, fast, slow, attention_factor):
            parameters |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": before,
                           "beta_fast": fast, "beta_slow": slow}  # fmt: skip
            if attention_factor is not None:
                parameters["attention_factor"] = attention_factor
    return parameters


def windows_of(config: Config) -> tuple[Pattern, ...]:
    size, family = config.get("sliding_window"), config["model_type"]
    if family in ("mistral", "mixtral"):
        return (Window(size),) if size else ()
    if family == "llama" or not config.get("use_sliding_window") or not size:
        return ()
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= config.get("max_window_layers", 28) else "full_attention"
        for layer in range(layers)
    ]
    return tuple(Window(size) if kind == "sliding_attention" else Full() for kind in kinds)


def llama_arguments(config: Config) -> Config:
    """Arguments of a Transformer, for every family but GPT-2."""
    family = config["model_type"]
    if (curve := config.get("hidden_act", "silu")) != "silu":
        raise UserError(f"config.json has hidden_act={curve}; only silu is known of {family}.")
    heads = config["num_attention_heads"]
    bias = bool(config.get("attention_bias"))
    theta, scaling = rotary_of(config)
    feedforward: FeedForward | MixtureOfExperts = FeedForward("swiglu", bias=bool(config.get("mlp_bias")))
    if family == "mixtral":
        feedforward = MixtureOfExperts(
            config["num_local_experts"], config["num_experts_per_tok"],
            balance=config.get("router_aux_loss_coef", 0.001),
        )  # fmt: skip
    return {
        "vocabulary_size": config["vocab_size"], "width": config["hidden_size"],
        "layers": config["num_hidden_layers"], "heads": heads, "context": config["max_position_embeddings"],
        "kv_heads": config.get("num_key_value_heads") or heads, "hidden": config["intermediate_size"],
        "head_width": config.get("head_dim") or config["hidden_size"] // heads,
        "norm_eps": config["rms_norm_eps"], "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "positions": Rotary(theta, scaling=scaling), "feedforward": feedforward,
        "dropout": Dropout(attention=config.get("attention_dropout") or 0.0),
        "attention": Attention(windows_of(config), bias=bias or family == "qwen2", out_bias=bias),
        "norm": Norm(queries_and_keys=family == "qwen3"),
    }  # fmt: skip


def llama_config(model: Transformer, family: str) -> Config:
    sizes, first = model.sizes, model.feedforwards[0]
    windows = [pattern.size for pattern in model.patterns if isinstance(pattern, Window)]
    config = {
        "model_type": family, "architectures": [ARCHITECTURES[family]], "vocab_size": model.vocabulary_size,
        "hidden_size": sizes.width, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.channels,
        "intermediate_size": first.hidden or sizes.hidden, "hidden_act": "silu",
        "max_position_embeddings": model.context, "rms_norm_eps": sizes.norm_eps, "attention_dropout": 0.0,
        "tie_word_embeddings": model.output is None, "use_cache": True,
        "rope_parameters": rope_parameters(model.positions if isinstance(model.positions, Rotary) else Rotary(1e4)),
    }  # fmt: skip
    if family in ("llama", "qwen3"):
        config["attention_bias"] = model.attention.out_bias
    if family == "llama":
        config["mlp_bias"] = isinstance(first, FeedForward) and first.bias
    if family in ("mistral", "mixtral"):
        config["sliding_window"] = windows[0] if windows else None
    if family in ("qwen2", "qwen3"):
        kinds = ["sliding_attention" if isinstance(p, Window) else "full_attention" for p in model.patterns]
        config |= {"use_sliding_window": bool(windows), "sliding_window": windows[0] if windows else None,
                   "max_window_layers": next((i for i, p in enumerate(model.patterns) if isinstance(p, Window)),
                                             sizes.layers), "layer_types": kinds}  # fmt: skip
    if family == "mixtral":
        routed = first if isinstance(first, MixtureOfExperts) else MixtureOfExperts(1, 1)
        config |= {"num_local_experts": routed.experts, "num_experts_per_tok": routed.top_k,
                   "router_aux_loss_coef": routed.balance}  # fmt: skip
    return config


CURVES: dict[str, Activation] = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
}  # fmt: skip


def gpt2_arguments(config: Config) -> Config:
    for key, plain in (
        ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False), ("scale_attn_weights", True)
    ):  # fmt: skip
        if (value := config.get(key, plain)) != plain:
            raise UserError(f"config.json has {key}={json.dumps(value)}, which is not known of gpt2.")
    if (curve := config.get("activation_function", "gelu_new")) not in CURVES:
        raise UserError(f"config.json has activation_function={curve}; known are {', '.join(CURVES)}.")
    return {
        "vocabulary_size": config["vocab_size"], "width": config["n_embd"], "layers": config["n_layer"],
        "heads": config["n_head"], "context": config["n_positions"],
        "hidden": config.get("n_inner") or 4 * config["n_embd"], "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": config.get("tie_word_embeddings", True), "positions": Learned(),
        "attention": Attention(bias=True, out_bias=True), "norm": Norm("layer", bias=True),
        "feedforward": FeedForward(CURVES[curve], bias=True),
        "dropout": Dropout(*(config.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop"))),
    }  # fmt: skip


def gpt2_config(model: Transformer, family: str) -> Config:
    sizes, first = model.sizes, model.feedforwards[0]
    return {
        "model_type": family, "architectures": [ARCHITECTURES[family]], "vocab_size": model.vocabulary_size,
        "n_positions": model.context, "n_embd": sizes.width, "n_layer": sizes.layers, "n_head": sizes.heads,
        "n_inner": first.hidden or sizes.hidden, "layer_norm_epsilon": sizes.norm_eps,
        "activation_function": next((name for name, own in CURVES.items() if own == first.activation), "gelu_new"),
        "tie_word_embeddings": model.output is None, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip


# --- names ------------------------------------------------------------------------------------------------------------

LLAMA = {
    "embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head", "blocks": "model.layers",
    "attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm",
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "feedforward.gate_up": ("mlp.gate_proj", "mlp.up_proj"), "feedforward.out": "mlp.down_proj",
    "feedforward.router": "block_sparse_moe.gate", "experts": "block_sparse_moe.experts",
}  # fmt: skip
GPT2 = {
    "embedding": "transformer.wte", "position_embedding": "transformer.wpe", "norm": "transformer.ln_f",
    "output": "lm_head", "blocks": "transformer.h", "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "feedforward.up": "mlp.c_fc",
    "feedforward.out": "mlp.c_proj",
}  # fmt: skip


class Family(NamedTuple):
    arguments: Callable[[Config], Config]
    config: Callable[[Transformer, str], Config]
    names: dict[str, Any]
    transposed: bool = False  # the matrices of blocks are [in, out]


FAMILIES = {
    "llama": Family(llama_arguments, llama_config, LLAMA),
    "mistral": Family(llama_arguments, llama_config, LLAMA),
    "qwen2": Family(llama_arguments, llama_config, LLAMA),
    "qwen3": Family(llama_arguments, llama_config, LLAMA),
    "mixtral": Family(llama_arguments, llama_config, LLAMA),
    "gpt2": Family(gpt2_arguments, gpt2_config, GPT2, transposed=True),
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "mixtral": "MixtralForCausalLM", "gpt2": "GPT2LMHeadModel",
}  # fmt: skip


def parts_of(model: Transformer, family: Family) -> dict[str, list[Part]]:
    """By the name of our tensor, the tensors of theirs that it is made of, in order of its bytes."""
    sizes, names = model.sizes, family.names
    keys = sizes.kv_heads * sizes.channels
    found: dict[str, list[Part]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            _, layer, inner = name.split(".", 2)
            prefix = f"{names['blocks']}.{layer}."
        else:
            prefix, inner = "", name
        if parameter.ndim == 3:
            halves = parameter.shape[1] // 2
            rows = [("w1", 0, halves), ("w3", halves, 2 * halves)]
            if inner.endswith("out"):
                rows = [("w2", 0, parameter.shape[1])]
            found[name] = [
                Part(f"{prefix}{names['experts']}.{expert}.{part}.weight", start, stop, expert)
                for expert in range(len(parameter))
                for part, start, stop in rows
            ]
            continue
        part, _, end = inner.rpartition(".")
        theirs, place = names[part], 0
        transposed = family.transposed and bool(prefix) and parameter.ndim == 2
        if isinstance(theirs, str):
            found[name] = [Part(f"{prefix}{theirs}.{end}", 0, parameter.shape[0], transposed=transposed)]
            continue
        rows_of = [sizes.heads * sizes.channels, keys, keys] if len(theirs) == 3 else [parameter.shape[0] // 2] * 2
        found[name] = []
        for their, count in zip(theirs, rows_of):
            found[name].append(Part(f"{prefix}{their}.{end}", place, place + count, transposed=transposed))
            place += count
    return found


def empty(arguments: Config) -> Transformer:
    """The model without its weights."""
    with torch.device("meta"):
        return Transformer(**arguments)


def family_of(model: Transformer, wanted: str | None = None) -> tuple[str, Config]:
    """The first family that can hold the model, and its config.json.

    Raises:
        UserError: none can; says what of the model the nearest one does not have.
    """
    if wanted is not None and wanted not in FAMILIES:
        raise UserError(f"there is no family {wanted}; there are {', '.join(FAMILIES)}.")
    own = model.architecture
    missed: dict[str, list[str]] = {}
    for name in [wanted] if wanted else FAMILIES:
        config = FAMILIES[name].config(model, name)
        try:
            again = empty(FAMILIES[name].arguments(config)).architecture
        except ValueError as error:
            missed[name] = [str(error)]
            continue
        missed[name] = [key for key in own if own[key] != again[key]]
        if not missed[name]:
            return name, config
    nearest = min(missed, key=lambda name: len(missed[name]))
    raise UserError(
        f"no family of Hugging Face's holds this model; {nearest} comes nearest, but has another "
        f"{', another '.join(missed[nearest])}."
        if not wanted
        else f"{wanted} does not hold this model: it has another {', another '.join(missed[nearest])}."
    )
