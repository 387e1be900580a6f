"""Checkpoints of Hugging Face (config.json and safetensors, sharded or not) to ours and back, byte for byte.

Ours stores query-key-value, gate-up and the experts of a layer joined; joining is along rows, so a tensor's bytes are
those of its parts one after another, and conversion holds one part in memory at a time.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hydra.utils import instantiate
from torch import Tensor

from athanor.corpus.tokenizer import FILENAME as TOKENIZER
from athanor.errors import UserError
from athanor.models import ARCHITECTURE, WEIGHTS
from athanor.models.huggingface_families import FAMILIES, Config, Part, empty, family_of, parts_of
from athanor.models.huggingface_tokenizer import export_tokenizer
from athanor.models.parts import node
from athanor.models.streams import Entry, Reader, replace, shards, write
from athanor.models.transformer import Transformer

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

INDEX = "model.safetensors.index.json"
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # buffers that old checkpoints hold


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
        kind = description["_target_"].rpartition(".")[2]
        name = {"Encoder": "an encoder", "EncoderDecoder": "an encoder-decoder"}.get(kind, "a reward model")
        raise UserError(f"only a language model that is a decoder can be exported, not {name}.")
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
