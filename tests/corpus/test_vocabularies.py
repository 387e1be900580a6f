"""Vocabularies compared on what none has seen, enlarged without moving a piece, and encoding in many processes."""

import json

import pytest
from corpus_harness import CHINESE, ENGLISH, Context, Outputs, document
from test_tokenizer import TEXTS, corpus

from athanor.corpus.documents import write_documents
from athanor.corpus.shards import WriteShards
from athanor.corpus.tokenizer import Tokenizer, TrainTokenizer, encode_in_processes, fraction, measure
from athanor.corpus.vocabularies import ExtendTokenizer, SweepVocabularies
from athanor.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def opened():
    import athanor.runs.store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(athanor.runs.store, "open_run", Outputs)
        yield


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("documents") / "documents")


def english(folder):
    folder.mkdir()
    texts = [" ".join(sorted(ENGLISH.split(), key=lambda word: fraction(f"{n}{word}"))) for n in range(100)]
    write_documents(folder / "documents.jsonl.zst", [document(t, f"e{n}", language="en") for n, t in enumerate(texts)])
    return str(folder)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def extended(request, documents, tmp_path_factory):
    """(the tokenizer of English alone, the one with Chinese added, its account)"""
    folder = tmp_path_factory.mktemp(request.param)
    TrainTokenizer(english(folder / "english"), 420, request.param).run(Context(folder / "old"))
    ExtendTokenizer(str(folder / "old"), documents, added=50).run(Context(folder / "new"))
    account = json.loads((folder / "new" / "tokenizer.json").read_text())
    return Tokenizer(folder / "old"), Tokenizer(folder / "new"), account


def test_measured_by_hand(documents, tmp_path):
    TrainTokenizer(documents, 640).run(Context(tmp_path / "run"))
    tokenizer = Tokenizer(tmp_path / "run")
    given = [document("the dog 𠀀\n", language="en"), document("农夫看着狗", language="zh")]
    found = measure(tokenizer, given)
    tokens = [len(tokenizer.encode(d.text)) for d in given]
    assert found["bytes_per_token"] == {"en": round(13 / tokens[0], 4), "zh": round(15 / tokens[1], 4)}
    assert found["fertility"] == {"en": round(tokens[0] / 3, 4), "zh": round(tokens[1] / 5, 4)}
    assert found["as_bytes"] == {"en": round(4 / 13, 6), "zh": 0.0}, "four bytes of a character without a piece"
    assert (found["round_trip"], found["documents"]) == (1.0, 2)


def test_a_sweep_measures_on_what_none_was_trained_on(documents, tmp_path, monkeypatch):
    seen = []
    real = TrainTokenizer.train
    monkeypatch.setattr(TrainTokenizer, "train", lambda self, lines: real(self, noted(lines)))

    def noted(lines):
        for line in lines:
            seen.append(line)
            yield line

    job = SweepVocabularies(documents, [640, 480], ["bpe", "unigram"], held_out=0.2)
    metrics = job.run(Context(tmp_path / "sweep"))
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    names = [(one["model_type"], one["vocabulary_size"]) for one in found["tokenizers"]]
    assert names == [("bpe", 480), ("bpe", 640), ("unigram", 480), ("unigram", 640)]
    held = {d.text for d in job.read() if fraction(d.text) < 0.2}
    assert found["held_out"]["documents"] == len(held) > 50
    assert not held & set(seen)
    for small, large in ((0, 1), (2, 3)):
        for language in ("en", "zh"):
            rates = [found["tokenizers"][place]["bytes_per_token"][language] for place in (small, large)]
            assert rates[0] < rates[1], "more pieces, longer pieces"
    assert all(one["round_trip"] == 1 for one in found["tokenizers"])
    first = found["tokenizers"][0]
    assert metrics["bytes_per_token/bpe-480/en"] == first["bytes_per_token"]["en"]
    assert Tokenizer(tmp_path / "sweep" / first["file"]).vocabulary_size == 480


def test_an_extended_tokenizer_keeps_every_id_and_reads_the_new_language_shorter(extended):
    old, new, account = extended
    assert new.vocabulary_size == old.vocabulary_size + 50 == account["vocabulary_size"] == 470
    assert [new.piece(i) for i in range(old.vocabulary_size)] == [old.piece(i) for i in range(old.vocabulary_size)]
    assert new.special == old.special
    assert new.decode(old.encode(ENGLISH)) == ENGLISH, "what was encoded before still reads"
    assert account["bytes_per_token"]["zh"] > 2 * account["before"]["bytes_per_token"]["zh"]
    assert account["bytes_per_token"]["en"] >= account["before"]["bytes_per_token"]["en"]
    assert len({new.piece(i) for i in range(new.vocabulary_size)}) == new.vocabulary_size, "none twice"
    used = {i for text in (CHINESE, ENGLISH) for i in new.encode(text)}
    assert len(used & set(range(420, 470))) > 20, "the new pieces can be reached"


def test_an_extended_tokenizer_restores_every_text(extended):
    new = extended[1]
    controls = {*new.special.values(), new.pad_id, new.bos_id, new.eos_id, new.unk_id}
    for text in [*TEXTS, "<|user|>狐狸<|end|>"]:
        assert new.decode(new.encode(text)) == text
        assert not controls & set(new.encode(text)), text


def test_limits(documents, tmp_path):
    TrainTokenizer(documents, 640).run(Context(tmp_path / "old"))
    with pytest.raises(UserError, match=r"added 50000 is too many for these documents; the most is (\d+)") as error:
        ExtendTokenizer(str(tmp_path / "old"), documents, added=50_000).run(Context(tmp_path / "new"))
    most = int(str(error.value).rstrip(".").split()[-1])
    ExtendTokenizer(str(tmp_path / "old"), documents, added=most).run(Context(tmp_path / "most"))
    assert Tokenizer(tmp_path / "most").vocabulary_size == 640 + most
    with pytest.raises(UserError, match="added 0 must be at least 1"):
        ExtendTokenizer("t", "d", added=0)
    with pytest.raises(UserError, match="name at least one"):
        SweepVocabularies("d", [])
    with pytest.raises(UserError, match=r"held_out 1\.5 must lie"):
        SweepVocabularies("d", [640], held_out=1.5)


def test_processes_change_no_byte(documents, tmp_path, monkeypatch):
    import athanor.corpus.shards

    TrainTokenizer(documents, 640).run(Context(tmp_path / "tokenizer"))
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    batches = [[text, text[::-1]] for text in TEXTS] * 2
    expected = [tokenizer.encode_batch(batch) for batch in batches]
    assert list(encode_in_processes(tokenizer, iter(batches), 1)) == expected
    monkeypatch.setattr(athanor.corpus.shards, "BATCH", 40)
    outputs = []
    for workers in (1, 2):
        monkeypatch.setattr(athanor.corpus.shards, "cores", lambda workers=workers: workers)
        monkeypatch.setattr(athanor.corpus.shards, "WORTH_PROCESSES", 0)
        folder = tmp_path / str(workers)
        WriteShards(documents, str(tmp_path / "tokenizer"), 0.2).run(Context(folder))
        outputs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 7
