"""Text to ids and back exactly, roles out of reach of text, the same model every time, clear limits."""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from corpus_harness import CHINESE, ENGLISH, Context, Outputs, document

from athanor.corpus.documents import write_documents
from athanor.corpus.tokenizer import LONGEST_WORD, MANY, SPECIAL, Tokenizer, TrainTokenizer, fraction, parsed
from athanor.errors import UserError

CODE = "def f(x):\n\tif x:\n        return x  # 12345\n\n\n" * 3


def corpus(folder: Path) -> str:
    """A few hundred documents of shuffled sentences in two languages, and code."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    documents = []
    for number in range(300):
        words = ENGLISH.split()
        characters = list(CHINESE)
        rng.shuffle(words)
        rng.shuffle(characters)
        documents.append(document(" ".join(words), f"e{number}", language="en"))
        documents.append(document("".join(characters), f"z{number}", language="zh"))
    documents.append(document(CODE, "code", language="en"))
    write_documents(folder / "documents.jsonl.zst", documents)
    return str(folder)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    import athanor.runs.store

    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(athanor.runs.store, "open_run", Outputs)
        task = TrainTokenizer(corpus(folder / "documents"), vocabulary_size=640, model_type=request.param)
        task.run(Context(folder / "run"))
    return Tokenizer(folder / "run" / "tokenizer.model")


TEXTS = [
    "",
    " ",
    "   leading and trailing   ",
    "\n\n\ttabs\t\nand\r\nnewlines\n",
    CODE,
    ENGLISH,
    CHINESE,
    "\x00nul\x00",
    "▁meta▁ space ▁",
    "▁",
    "𠀀😀👨\u200d👩\u200d👧 ⁇ \ufeff \u3000 é e\u0301",
    "<0x41> <unk> <pad> <s> </s> <|user|>",
    "<|end|><|assistant|>",
    "한국어 и русский",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_of_noise(tokenizer):
    rng = random.Random(7)
    alphabet = [*"ab ▁\n\t\x00<|>1狐", "<|end|>", "<s>", "\u0301", "😀", "  "]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 25))) for _ in range(2000)]
    texts += ["".join(chr(c) for c in rng.choices(range(0xD800), k=20)) for _ in range(500)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_no_text_encodes_to_a_control_symbol(tokenizer):
    controls = {*tokenizer.special.values(), tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    assert len(controls) == 8
    for text in [*TEXTS, *SPECIAL, "a<|user|>b", " <|end|>", "<|end|>\n", "▁<|system|>▁", "<pad>", "</s>"]:
        assert not controls & set(tokenizer.encode(text)), text


def test_special_ids_decode_only_on_demand(tokenizer):
    user, end = tokenizer.special["<|user|>"], tokenizer.special["<|end|>"]
    ids = [
        tokenizer.bos_id,
        user,
        *tokenizer.encode(" hi 狐"),
        end,
        *tokenizer.encode(" x"),
        tokenizer.eos_id,
        tokenizer.pad_id,
    ]
    assert tokenizer.decode(ids) == " hi 狐 x"
    assert tokenizer.decode(ids, special=True) == "<|user|> hi 狐<|end|> x"


def test_ids_of_a_numpy_array_decode(tokenizer):
    import numpy as np

    assert tokenizer.decode(np.array(tokenizer.encode(ENGLISH), dtype=np.uint16)) == ENGLISH


def test_every_digit_is_a_token(tokenizer):
    pieces = [tokenizer.piece(index) for index in tokenizer.encode("in 12345")]
    assert pieces[-5:] == list("12345")


def test_batches_and_threads_change_nothing(tokenizer):
    single = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS, threads=2) == single
    assert tokenizer.encode_batch([]) == []


def test_word_by_word_the_ids_are_those_of_the_whole_text(tokenizer):
    rng = random.Random(3)
    alphabet = [
        *"ab ▁\n\t\x00<|>1狐é😀",
        "  ",
        "<|end|>",
        "<0x41>",
        " the",
        "quick ",
        "敏捷",
        " 的",
        "\u3000",
        "\u00a0",
    ]
    texts = [*TEXTS, *("".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(3000))]
    texts += [" ".join(rng.choices(ENGLISH.split(), k=50)) for _ in range(50)]
    assert sum(map(len, texts)) > MANY
    whole = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == tokenizer.encode_batch(texts, threads=2) == whole
    bpe = parsed(tokenizer.model.read_bytes()).trainer_spec.model_type == 2
    assert (tokenizer.words is not None) == bpe
    if bpe:
        assert "brown" in "".join(tokenizer.words)
        assert max(map(len, tokenizer.words)) <= LONGEST_WORD


def test_models_whose_pieces_reach_over_words_are_encoded_as_a_whole(tokenizer, tmp_path):
    proto = parsed(tokenizer.model.read_bytes())
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    known = {piece.piece: piece for piece in proto.pieces}

    def words(**normalizer) -> object:
        for name, value in normalizer.items():
            setattr(proto.normalizer_spec, name, value)
        (tmp_path / "changed.model").write_bytes(proto.SerializeToString())
        return Tokenizer(tmp_path / "changed.model").words

    assert words() is not None
    assert words(add_dummy_prefix=True) is None
    assert words(add_dummy_prefix=False, remove_extra_whitespaces=True) is None
    assert words(remove_extra_whitespaces=False) is not None
    for piece in ("of▁the", "\n\n", "}\n"):
        known["z"].piece = piece
        assert words() is None, piece
    known["z"].piece, known["z"].type = "z", known["z"].USER_DEFINED
    assert words() is None


def test_it_has_learnt_words(tokenizer):
    assert len(tokenizer.encode(ENGLISH)) < 0.5 * len(ENGLISH)
    assert len(tokenizer.encode(CHINESE)) <= len(CHINESE)
    assert max(max(tokenizer.encode(text), default=0) for text in TEXTS) < tokenizer.vocabulary_size == 640


def test_half_a_surrogate_pair(tokenizer):
    with pytest.raises(UserError, match="half of a surrogate pair"):
        tokenizer.encode("a\ud800")


def test_account(tmp_path, job):
    task = TrainTokenizer([corpus(tmp_path / "a"), corpus(tmp_path / "b")], vocabulary_size=640)
    directory = job("tokenizer", task)
    account = json.loads((directory / "tokenizer.json").read_text())
    tokenizer = Tokenizer(directory)
    sizes, tokens = {"en": 0, "zh": 0}, {"en": 0, "zh": 0}
    for d in task.read():
        sizes[d.language] += len(d.text.encode())
        tokens[d.language] += len(tokenizer.encode(d.text))
    assert account["bytes_per_token"] == pytest.approx({key: sizes[key] / tokens[key] for key in sizes}, abs=1e-4)
    assert account["round_trip"] == 1
    assert account["trained_on"] == sizes
    assert account["vocabulary_size"] == tokenizer.vocabulary_size == 640


def test_training_is_silent_and_the_same_in_every_process(tmp_path):
    script = (
        "import sys, athanor.runs.store; from test_tokenizer import *;"
        "athanor.runs.store.open_run = Outputs;"
        "TrainTokenizer(sys.argv[1], 640, sys.argv[3]).run(Context(Path(sys.argv[2])))"
    )
    documents = corpus(tmp_path / "documents")
    for model_type in ("bpe", "unigram"):
        outputs = []
        for seed in ("1", "2"):
            environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
            directory = tmp_path / f"{model_type}{seed}"
            done = subprocess.run(
                [sys.executable, "-c", script, documents, str(directory), model_type],
                check=True,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.stdout + done.stderr == ""
            outputs.append({path.name: path.read_bytes() for path in directory.iterdir()})
        assert outputs[0] == outputs[1]
        assert sorted(outputs[0]) == ["tokenizer.json", "tokenizer.model"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_too_large_a_vocabulary_names_the_largest(tmp_path, job, model_type):
    documents = corpus(tmp_path / "documents")
    with pytest.raises(
        UserError, match=r"vocabulary_size 50000 is too large for these documents; the largest is \d+"
    ) as error:
        job("large", TrainTokenizer(documents, 50_000, model_type))
    assert list((tmp_path / "large").iterdir()) == []
    largest = int(str(error.value).rstrip(".").split()[-1])
    assert Tokenizer(job("largest", TrainTokenizer(documents, largest, model_type))).vocabulary_size == largest
    with pytest.raises(UserError, match=rf"the largest is {largest}\."):
        job("one more", TrainTokenizer(documents, largest + 1, model_type))


def test_too_small_a_vocabulary_names_the_smallest(tmp_path, job):
    documents = corpus(tmp_path / "documents")
    with pytest.raises(UserError, match=r"vocabulary_size 300 is too small.* need (\d+)") as error:
        job("small", TrainTokenizer(documents, 300))
    smallest = int(str(error.value).partition("need ")[2].partition(";")[0])
    assert Tokenizer(job("smallest", TrainTokenizer(documents, smallest))).vocabulary_size == smallest


def test_max_bytes_draws_documents_by_their_text(tmp_path, job):
    documents = corpus(tmp_path / "documents")
    whole = json.loads((job("whole", TrainTokenizer(documents, 640)) / "tokenizer.json").read_text())["trained_on"]
    half = sum(whole.values()) // 2
    account = json.loads((job("half", TrainTokenizer(documents, 640, max_bytes=half)) / "tokenizer.json").read_text())
    assert 0.8 * half < sum(account["trained_on"].values()) < 1.2 * half
    assert set(account["trained_on"]) == {"en", "zh"}


def test_max_bytes_that_leaves_nothing(tmp_path, job):
    with pytest.raises(UserError, match="no text to train a tokenizer on; enlarge max_bytes"):
        job("none", TrainTokenizer(corpus(tmp_path / "documents"), 640, max_bytes=0))


@pytest.mark.parametrize("failure", [UserError("a file is damaged"), KeyboardInterrupt()])
def test_what_stops_the_reading_is_what_is_raised(failure):
    def lines():
        yield ENGLISH
        raise failure

    with pytest.raises(type(failure)) as error:
        TrainTokenizer("x", 640).train(lines())
    assert error.value is failure


def test_fraction_is_even():
    values = sorted(fraction(str(n)) for n in range(1000))
    assert max(abs(value - n / 1000) for n, value in enumerate(values)) < 0.06
    assert fraction("x") == fraction("x")


def test_what_is_no_tokenizer(tmp_path, shared):
    with pytest.raises(UserError, match=r"none\.model does not exist"):
        Tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "bad.model")
    with pytest.raises(UserError, match=r"test_model\.model lacks <\|system\|>"):
        Tokenizer(shared / "ref_sentencepiece/test_model.model")


def test_coverage_out_of_range():
    with pytest.raises(UserError, match=r"character_coverage 0\.5 must lie between"):
        TrainTokenizer("x", 1000, character_coverage=0.5)


def test_spans_say_which_characters_a_token_stands_for(tokenizer):
    """Of a rare character, which is bytes, each byte the same one."""
    text = "狐狸 fox  农夫龘，\n\tdog 😀"
    spans = tokenizer.spans(text)
    assert [index for index, _, _ in spans] == tokenizer.encode(text)
    assert spans[-1][2] == len(text)
    assert sum(text[begin:end] == "龘" for _, begin, end in spans) == 3
    for index, begin, end in spans:
        if index not in tokenizer.bytes and index not in tokenizer.meta_space:
            assert text[begin:end].strip() in tokenizer.piece(index)
    assert all(b[1] in (a[1], a[2]) for a, b in pairwise(spans))
    assert [(begin, end) for _, begin, end in tokenizer.spans("狐\u2581狸")][-4:] == [(1, 2)] * 3 + [(2, 3)]
