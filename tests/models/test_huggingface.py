"""Checkpoints to and from transformers itself: the same logits, the same bytes, and refusals that say why."""

import json
import os
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from athanor import models
from athanor.errors import UserError
from athanor.models.attention import Attention
from athanor.models.feedforward import FeedForward
from athanor.models.heads import ScalarModel
from athanor.models.huggingface import INDEX, ImportCheckpoint, export
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.patterns import Full, Window
from athanor.models.positions import ALiBi, Learned, Rotary
from athanor.models.scaling import Linear, Llama3, NTKAware, YaRN
from athanor.models.transformer import Transformer
from athanor.progress import Progress
from athanor.runs.context import RunContext

os.environ["HF_HUB_OFFLINE"] = "1"

SIZE = {
    "vocab_size": 53, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 16,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
CASES = {
    "llama 2": ("Llama", {"rms_norm_eps": 1e-3}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 6}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2.5": ("Qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "gpt2": ("GPT2", {}),
}


def theirs(kind: str, settings: dict):
    import transformers

    size = SIZE
    if kind == "GPT2":
        size = {"vocab_size": 53, "n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 72,
                "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**size, **settings})
    torch.manual_seed(5)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                0.25 * torch.randn_like(parameter) + (1 if parameter.ndim < 2 and "bias" not in name else 0)
            )
    return model


def imported(folder: Path, into: Path) -> Transformer:
    """By the job itself; its files read as `models.load` reads them."""
    into.mkdir()
    ImportCheckpoint([str(path) for path in sorted(folder.iterdir())]).run(RunContext(into, None, Progress(quiet=True)))
    model = instantiate(json.loads((into / models.ARCHITECTURE).read_text()), _convert_="all")
    model.load_state_dict(load_file(into / models.WEIGHTS))
    return model.eval()


def exported(model: torch.nn.Module, folder: Path, **settings) -> str:
    (run := folder.with_name(f"{folder.name}-run")).mkdir()
    models.save(model, run)
    return export(run / models.WEIGHTS, json.loads((run / models.ARCHITECTURE).read_text()), folder, **settings)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


TOKENS = torch.randint(0, 53, (2, 40), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_there_and_back(case, tmp_path):
    from transformers import AutoModelForCausalLM

    kind, settings = CASES[case]
    model = theirs(kind, settings)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ours = imported(tmp_path / "theirs", tmp_path / "run")
    expected = model(TOKENS).logits
    torch.testing.assert_close(ours(TOKENS), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.3

    description = json.loads((tmp_path / "run" / models.ARCHITECTURE).read_text())
    family = export(
        tmp_path / "run" / models.WEIGHTS, description, tmp_path / "back", family=kind.lower(), shard_bytes=20_000
    )
    assert family == kind.lower()
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(again) is type(model)
    torch.testing.assert_close(again.eval()(TOKENS).logits, expected, atol=1e-6, rtol=1e-6)


OURS = {
    "llama": {},
    "llama with biases": {"attention": Attention(bias=True, out_bias=True), "feedforward": FeedForward(bias=True)},
    "llama, scaled": {"rope_theta": 300.0, "positions": Rotary(scaling=Llama3(4.0, 32))},
    "mistral": {"attention": Attention([Window(7)]), "positions": Rotary(scaling=Linear(2.0)), "head_width": 10},
    "qwen2": {"attention": Attention([Full(), Window(7)], bias=True), "positions": Rotary(scaling=YaRN(4.0, 32, 8.0))},
    "qwen3": {"norm": Norm(queries_and_keys=True), "tie_embeddings": False},
    "mixtral": {"feedforward": MixtureOfExperts(5, 2, hidden=24), "tie_embeddings": False},
    "gpt2": {
        "positions": Learned(), "norm": Norm("layer", bias=True), "attention": Attention(bias=True, out_bias=True),
        "feedforward": FeedForward("gelu_tanh", bias=True), "kv_heads": 4,
    },
}  # fmt: skip
SHAPE = {"vocabulary_size": 53, "width": 32, "layers": 4, "heads": 4, "kv_heads": 2, "context": 64}


def ours(**changes) -> Transformer:
    torch.manual_seed(6)
    model = Transformer(**{**SHAPE, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("case", OURS)
@torch.no_grad()
def test_a_model_of_ours_is_one_of_theirs(case, tmp_path):
    from transformers import AutoModelForCausalLM

    model = ours(**OURS[case])
    assert exported(model, tmp_path / "out") == case.split()[0].strip(",")
    assert not (tmp_path / "out" / INDEX).exists()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(found(TOKENS).logits, model(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"positions": ALiBi()}, "another positions"),
        ({"positions": Rotary(scaling=NTKAware(2.0))}, "another positions"),
        ({"positions": Rotary(share=0.5)}, "another positions"),
        ({"norm": Norm(placement="sandwich")}, "another norm"),
        ({"logit_softcap": 30.0}, "another logit_softcap"),
        ({"scale_embeddings": True}, "another scale_embeddings"),
        ({"feedforward": FeedForward("geglu")}, "another feedforward"),
        (
            {"feedforward": MixtureOfExperts(4, 2, normalize=False)},
            "another feedforward",
        ),
        ({"feedforward": [FeedForward(), MixtureOfExperts(4, 2)]}, "another feedforward"),
        ({"attention": Attention([Window(3), Window(5)], bias=True)}, "qwen2 comes nearest, but has another patterns"),
        ({"attention": Attention(out_bias=True)}, "another attention"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_what_no_family_holds_is_refused(changes, differs, tmp_path):
    with pytest.raises(UserError, match=differs):
        exported(ours(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_refusals_of_an_export(tmp_path):
    with pytest.raises(UserError, match="qwen3 does not hold this model: it has another norm"):
        exported(ours(), tmp_path / "a", family="qwen3")
    with pytest.raises(UserError, match="there is no family bert"):
        exported(ours(), tmp_path / "b", family="bert")
    with pytest.raises(UserError, match="only a language model"):
        exported(ScalarModel(ours()), tmp_path / "c")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    exported(ours(tie_embeddings=False), folder := tmp_path / "checkpoint")
    return folder


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "bert"}, "model_type=bert; known are llama, mistral"),
        ({"hidden_act": "relu"}, "hidden_act=relu; only silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling dynamic"),
        ({"rope_parameters": {**YARN, "mscale": 0.7}}, "mscale of its rotary scaling yarn"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"num_hidden_layers": 5}, "lacks model.layers.4"),
        ({"num_hidden_layers": 3}, "has model.layers.3.* which llama with this config.json has not"),
        ({"vocab_size": 54}, r"model.embed_tokens.weight has the shape \(53, 32\)"),
        ({"rms_norm_eps": ...}, "config.json lacks 'rms_norm_eps'"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_config_says(checkpoint, changes, match, tmp_path):
    edit(checkpoint, **changes)
    with pytest.raises(UserError, match=match):
        imported(checkpoint, tmp_path / "run")
    assert not (tmp_path / "run" / models.WEIGHTS).exists()


def test_older_names_of_the_rotary_settings(checkpoint, tmp_path):
    old = {"rope_parameters": ..., "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    edit(checkpoint, **old)
    assert imported(checkpoint, tmp_path / "run").positions == Rotary(500.0, scaling=Linear(2.0))


def test_broken_files(checkpoint, tmp_path):
    weights = checkpoint / models.WEIGHTS
    whole = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        imported(checkpoint, tmp_path / "a")
    save_file({name: value.to(torch.int32) for name, value in whole.items()}, weights)
    with pytest.raises(UserError, match="is of type I32"):
        imported(checkpoint, tmp_path / "b")
    save_file(whole, weights)
    save_file({"lm_head.weight": whole["lm_head.weight"]}, checkpoint / "more.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight stands in two files"):
        imported(checkpoint, tmp_path / "c")
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        imported(checkpoint, tmp_path / "d")


def test_bfloat16_stays_as_it_is(checkpoint, tmp_path):
    whole = load_file(checkpoint / models.WEIGHTS)
    low = {name: value.bfloat16() for name, value in whole.items()}
    save_file(low, checkpoint / models.WEIGHTS)
    model = imported(checkpoint, tmp_path / "run")
    assert model.embedding.weight.dtype == torch.float32, "computed in float32"
    description = json.loads((tmp_path / "run" / models.ARCHITECTURE).read_text())
    export(tmp_path / "run" / models.WEIGHTS, description, tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert all(back[name].dtype == torch.bfloat16 and torch.equal(back[name], low[name]) for name in low)
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == "bfloat16"


def test_conversion_holds_one_part_in_memory(checkpoint):
    """Nothing is read until it is written, and then no more than one of their tensors at a time."""
    _, entries = ImportCheckpoint([str(path) for path in checkpoint.iterdir()]).read()
    joined = next(entry for entry in entries if entry.name == "blocks.0.attention.qkv.weight")
    assert [tuple(chunk.shape) for chunk in joined.chunks] == [(32, 32), (16, 32), (16, 32)]


def test_from_the_command_line_and_back(checkpoint, project):
    """Import is an experiment, so a checkpoint has a lineage as all inputs have."""
    assert checkpoint == project.folder / "checkpoint"
    project.experiment(
        "import/tiny",
        """
        # A checkpoint of Hugging Face.
        defaults: [/prepare, _self_]
        inputs:
          checkpoint: {files: checkpoint/*}
        job:
          _target_: athanor.models.huggingface.ImportCheckpoint
          files: ${inputs.checkpoint}
        """,
    )
    done = project.athanor("prepare", "experiment=import/tiny")
    assert done.returncode == 0, done.stderr
    run = next((project.folder / "runs/import/tiny").iterdir())
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(models.load(str(run))(tokens), ours(tie_embeddings=False)(tokens))
    done = project.athanor("export", "import/tiny", "out", "--family", "mistral", "--shard-size", "0.00002")
    assert (done.returncode, done.stdout) == (0, "mistral  out\n"), done.stderr
    before, after = tensors(checkpoint), tensors(project.folder / "out")
    assert len(list((project.folder / "out").glob("*.safetensors"))) > 1
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    refused = project.athanor("export", "import/tiny", "other", "--family", "gpt2")
    assert refused.returncode == 2
    assert "gpt2 does not hold this model" in refused.stderr
