"""Checkpoints of Hugging Face (config.json and safetensors, sharded or not) to ours and back, byte for byte.

Families: Llama 2 and 3, Mistral, Qwen2 (and 2.5), Qwen3, Mixtral, GPT-2. Ours stores query-key-value, gate-up and the
experts of a layer joined; joining is along rows, so a tensor's bytes are those of its parts one after another, and
conversion holds one part in memory at a time. Whether a model is of a family is not a list of rules: its config is
written, read back, and must give the same architecture.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from hydra.utils import instantiate
from torch import Tensor

from athanor.corpus.tokenizer import FILENAME as TOKENIZER
from athanor.errors import UserError
from athanor.models import ARCHITECTURE, WEIGHTS
from athanor.models.attention import Attention
from athanor.models.dropout import Dropout
from athanor.models.feedforward import Activation, FeedForward
from athanor.models.huggingface_tokenizer import export_tokenizer
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.parts import node
from athanor.models.patterns import Full, Pattern, Window
from athanor.models.positions import Learned, Rotary
from athanor.models.scaling import Linear, Llama3, Scaling, YaRN
from athanor.models.streams import Entry, Reader, replace, shards, write
from athanor.models.transformer import Transformer

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

Config = dict[str, Any]
INDEX = "model.safetensors.index.json"
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # buffers that old checkpoints hold


class Part(NamedTuple):
    """A tensor of theirs as rows of one of ours."""

    name: str
    start: int
    stop: int
    expert: int | None = None
    transposed: bool = False


# --- configs ----------------------------------------------------------------------------------------------------------


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


# --- conversion -------------------------------------------------------------------------------------------------------


def empty(arguments: Config) -> Transformer:
    """The model without its weights."""
    with torch.device("meta"):
        return Transformer(**arguments)


class ImportCheckpoint:
    """A checkpoint as a model of ours: model.safetensors and model.json, in the run of a `prepare` experiment.

    Args:
        files: config.json and the *.safetensors of one checkpoint; others are passed over.
    """

    def __init__(self, files: list[str]):
        self.files = [Path(file) for file in files]

    def run(self, run: "RunContext") -> dict[str, float]:
        run.progress.stage("converting")
        model, entries = self.read()
        with run.temporary(WEIGHTS) as path:
            write(path, entries)
        description = {"_target_": "athanor.models.transformer.Transformer", **model.arguments}
        with run.temporary(ARCHITECTURE) as path:
            path.write_text(json.dumps(description, indent=1, default=node) + "\n", encoding="utf-8")
        return {"parameters": float(sum(p.numel() for p in model.parameters()))}

    def read(self) -> tuple[Transformer, list[Entry]]:
        """The model without its weights, and its tensors, still unread.

        Raises:
            UserError: an unknown family or setting; a tensor that is missing, left over or of another shape.
        """
        by_name = {path.name: path for path in self.files}
        if "config.json" not in by_name:
            raise UserError("there is no config.json among the files of the checkpoint; name its whole folder: DIR/*.")
        config = json.loads(by_name["config.json"].read_text(encoding="utf-8"))
        if (kind := config.get("model_type")) not in FAMILIES:
            raise UserError(f"config.json has model_type={kind}; known are {', '.join(FAMILIES)}.")
        family = FAMILIES[kind]
        try:
            model = empty(family.arguments(config))
        except KeyError as error:
            raise UserError(f"config.json lacks {error}.") from None
        weights = [path for path in self.files if path.suffix == ".safetensors"]
        if not weights:
            raise UserError("there is no *.safetensors among the files; convert older formats with transformers first.")
        reader = Reader(weights)
        found = {name: name for name in reader.files if not name.endswith(IGNORED)}
        if kind == "gpt2":  # the oldest checkpoints are of the model without its head
            found = {name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": name
                     for name in found}  # fmt: skip
        if model.output is None:
            found.pop("lm_head.weight", None)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        entries = []
        for name, parts in parts_of(model, family).items():
            for part in parts:
                if part.name not in found:
                    raise UserError(f"the checkpoint lacks {part.name}; is a file of it missing?")
                shape = reader.shape(found[part.name])
                expected = (part.stop - part.start, *shapes[name][1 if part.expert is None else 2 :])
                if shape != (expected[::-1] if part.transposed else expected):
                    raise UserError(f"{part.name} has the shape {shape}, which config.json does not say.")
            sources = [(found.pop(part.name), part.transposed) for part in parts]
            dtypes = sorted({reader.dtype(source) for source, _ in sources})
            if len(dtypes) > 1:
                raise UserError(f"the parts of {name} are of types {' and '.join(dtypes)}; save them in one.")
            entries.append(Entry(name, dtypes[0], tuple(shapes[name]), chunks(reader, sources)))
        if found:
            raise UserError(f"the checkpoint has {min(found)}, which {kind} with this config.json has not.")
        return model, entries


def chunks(reader: Reader, sources: list[tuple[str, bool]]) -> Iterator[Tensor]:
    for source, transposed in sources:
        tensor = reader.read(source)
        yield tensor.T if transposed else tensor


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


def export_run(run: str, directory: Path, *, family: str | None = None, shard_bytes: int = 5 * 10**9) -> str:
    """Exports the model of a finished run, and its tokenizer where it has one; hashes verified. As `export`."""
    from athanor.runs.store import open_run

    source = open_run(run)
    outputs = source.manifest["outputs"]
    if ARCHITECTURE not in outputs:
        raise UserError(
            f"{run} is a {source.manifest['kind']} run and holds no model; name a training run or an import."
        )
    description = json.loads(source.path(ARCHITECTURE).read_text(encoding="utf-8"))
    name = export(source.path(WEIGHTS), description, directory, family=family, shard_bytes=shard_bytes)
    if TOKENIZER in outputs:
        export_tokenizer(source.path(TOKENIZER), directory, description["context"])
    return name


def export(
    weights: Path, description: Config, directory: Path, *, family: str | None = None, shard_bytes: int = 5 * 10**9
) -> str:
    """Writes config.json and the weights of a run's model in the form of transformers; returns the family.

    Args:
        weights, description: model.safetensors, and what model.json holds.
        family: default the first that can hold the model; a Llama is also a Mistral without a window.
        shard_bytes: the most in one file.
    """
    if not description["_target_"].endswith(".Transformer"):
        raise UserError("only a language model can be exported, not a reward model.")
    with torch.device("meta"):
        model: Transformer = instantiate(description, _convert_="all")
    name, config = family_of(model, family)
    reader = Reader([weights])
    config["dtype"] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}[
        reader.dtype("embedding.weight")
    ]
    entries = []
    for own, parts in parts_of(model, FAMILIES[name]).items():
        shape = reader.shape(own)
        for part in parts:
            rows = (part.stop - part.start, *shape[1 if part.expert is None else 2 :])
            theirs = rows[::-1] if part.transposed else rows
            entries.append(Entry(part.name, reader.dtype(own), theirs, rows_of(reader, own, part)))
    directory.mkdir(parents=True, exist_ok=True)
    groups = list(shards(entries, shard_bytes))
    files: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = WEIGHTS if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        replace(directory / file, lambda path, group=group: write(path, group))  # type: ignore[misc]
        files |= {entry.name: file for entry in group}
    if len(groups) > 1:
        total = {"total_size": sum(entry.bytes for entry in entries)}
        index = json.dumps({"metadata": total, "weight_map": files}, indent=2)
        replace(directory / INDEX, lambda path: path.write_text(index + "\n"))
    else:
        (directory / INDEX).unlink(missing_ok=True)
    replace(directory / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    return name


def rows_of(reader: Reader, name: str, part: Part) -> Iterator[Tensor]:
    rows = slice(part.start, part.stop)
    tensor = reader.read(name, rows) if part.expert is None else reader.read(name, part.expert, rows)
    yield tensor.T if part.transposed else tensor
