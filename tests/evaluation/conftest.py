"""Small, real runs to evaluate: a tokenizer, shards, a language model and a reward model, with manifests and hashes."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from athanor import models
from athanor.corpus.documents import Document, write_documents
from athanor.corpus.shards import WriteShards
from athanor.corpus.tokenizer import FILENAME, Tokenizer, TrainTokenizer
from athanor.data.chat import render
from athanor.evaluation.subject import Subject
from athanor.models.heads import ScalarModel
from athanor.models.transformer import Transformer
from athanor.progress import Progress
from athanor.runs.context import RunContext

QUESTIONS = [
    {"prompt": "2 + 3 = ?", "answer": "5", "language": "en", "family": "addition", "level": 1},
    {"prompt": "4 + 4 = ?", "answer": "8", "language": "en", "family": "addition", "level": 2},
    {"prompt": "Repeat: ember", "answer": "ember", "language": "en", "family": "copying", "level": 1},
    {"prompt": "请重复：炉火", "answer": "炉火", "language": "zh", "family": "copying", "level": 1},
    {"prompt": "三加四等于多少？", "answer": "7", "language": "zh", "family": "addition", "level": 2},
    {"prompt": "一加一等于多少？", "answer": "2", "language": "zh", "family": "addition", "level": 1},
]


class Runs:
    """A folder of runs; each method writes a finished run and returns its directory."""

    def __init__(self, root: Path):
        self.root = root

    def finish(self, name: str, kind: str, inputs: dict | None = None) -> str:
        directory = self.root / name / hashlib.sha256(name.encode()).hexdigest()[:16]
        outputs = {
            path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            for path in directory.iterdir()
        }
        manifest = {"format": 1, "name": name, "kind": kind, "fingerprint": directory.name, "status": "finished"}
        manifest |= {"inputs": inputs or {}, "outputs": outputs, "overrides": [], "started": 0.0}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return str(directory)

    def open(self, name: str) -> Path:
        directory = self.root / name / hashlib.sha256(name.encode()).hexdigest()[:16]
        directory.mkdir(parents=True)
        return directory

    def context(self, name: str, **config) -> RunContext:
        return RunContext(self.open(name), SimpleNamespace(config=config), Progress(quiet=True))

    def model(self, name: str, model: torch.nn.Module, tokenizer: str) -> str:
        directory = self.open(name)
        models.save(model, directory)
        (directory / FILENAME).write_bytes((Path(tokenizer) / FILENAME).read_bytes())
        return self.finish(name, "train")


def tiny(vocabulary_size: int, seed: int = 0, context: int = 48) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(vocabulary_size, width=32, layers=2, heads=2, context=context)
    with torch.no_grad():  # far from uniform, so that a wrong token or position shows
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """Runs: documents, tokenizer, shards, a random language model `policy`, another `other`, a reward model `judge`."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    texts = [
        ("en", f"The furnace holds {i} degrees for {i * 3} hours, " * (1 + i % 5) + "as the work takes.")
        for i in range(40)
    ] + [("zh", f"炉火保持{i}度，" * (1 + i % 4) + "直到水落石出。") for i in range(40)]
    directory = runs.open("documents")
    documents = [Document(str(i), text, "made", language, {}) for i, (language, text) in enumerate(texts)]
    write_documents(directory / "documents.jsonl.zst", iter(documents))
    source = runs.finish("documents", "prepare")
    TrainTokenizer(source, vocabulary_size=400).run(runs.context("tokenizer"))
    tokenizer = runs.finish("tokenizer", "prepare")
    WriteShards(source, tokenizer, validation_fraction=0.4).run(runs.context("shards"))
    given = {"tokenizer": {"kind": "run", "directory": tokenizer, "name": "tokenizer", "fingerprint": "0"}}
    shards = runs.finish("shards", "prepare", given)
    text = Tokenizer(tokenizer)
    judge = ScalarModel(tiny(text.vocabulary_size, seed=2))
    torch.nn.init.normal_(judge.head.weight)
    return SimpleNamespace(
        runs=runs,
        text=text,
        tokenizer=tokenizer,
        shards=shards,
        policy=runs.model("policy", tiny(text.vocabulary_size), tokenizer),
        other=runs.model("other", tiny(text.vocabulary_size, seed=1), tokenizer),
        judge=runs.model("judge", judge, tokenizer),
    )


@pytest.fixture(scope="session")
def scholar(world) -> str:
    """A model that was taught the first four of QUESTIONS, one of them wrongly."""
    taught = [dict(q) for q in QUESTIONS[:4]]
    taught[1]["answer"] = "9"
    conversations = [
        [{"role": "user", "content": q["prompt"]}, {"role": "assistant", "content": q["answer"]}] for q in taught
    ]
    rows = render(conversations, world.text)
    torch.manual_seed(0)
    model = Transformer(world.text.vocabulary_size, width=32, layers=2, heads=2, context=48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = torch.zeros(())
        for ids, answer in rows:
            tokens, mask = torch.from_numpy(ids).long()[None], torch.from_numpy(answer)[1:]
            loss = loss + torch.nn.functional.cross_entropy(model(tokens)[0, :-1][mask], tokens[0, 1:][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return world.runs.model("scholar", model.eval(), world.tokenizer)


@pytest.fixture
def questions(tmp_path) -> list[str]:
    path = tmp_path / "heldout.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"q{i}"} | q, ensure_ascii=False) + "\n" for i, q in enumerate(QUESTIONS)), "utf-8"
    )
    return [str(path)]


@pytest.fixture
def policy(world) -> Subject:
    return Subject(world.policy)
