"""Filters that score: a classifier of two sets, a model's perplexity, corrections of spelling."""

import json
import math
import random
from itertools import pairwise

import pytest
import torch
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.classifier import Classified, TrainClassifier
from athanor.corpus.documents import write_documents
from athanor.corpus.perplexity import Perplexity, Scorer
from athanor.corpus.spelling import CLAUSES, Spelling
from athanor.corpus.tokenizer import Tokenizer, TrainTokenizer
from athanor.errors import UserError


class Half(torch.nn.Module):
    """Gives every token of a vocabulary of four probability 1/4, but 1/2 to a token that follows itself."""

    context = 8

    def forward(self, tokens_BT):
        odds = torch.full((*tokens_BT.shape, 4), 1 / 6)
        return odds.scatter_(-1, tokens_BT[..., None], 1 / 2).log()


class Letters:
    """a and b are tokens 2 and 3."""

    bos_id, eos_id = 0, 1

    def encode(self, text):
        return ["ab".index(letter) + 2 for letter in text]

    def decode(self, ids):
        return "".join("ab"[i - 2] for i in ids)


def scored(step_or_scorer):
    scorer = getattr(step_or_scorer, "scorer", step_or_scorer)
    scorer.model, scorer.tokenizer = Half(), Letters()
    return step_or_scorer


def test_bits_by_hand():
    """Repetitions cost one bit, all else log2 6: in one piece, over the pieces of a long text, and cut off."""
    scorer = scored(Scorer("run", max_tokens=None))
    other = math.log2(6)
    assert scorer.bits("aab") == (pytest.approx(3 * other + 1), 3)
    bits, size = scorer.bits("a" * 30)
    assert (bits, size) == (pytest.approx(29 + 2 * other, rel=1e-5), 30)
    assert scored(Scorer("run", max_tokens=10)).bits("a" * 30) == (pytest.approx(9 + other, rel=1e-5), 10)


def test_texts_too_surprising_or_not_at_all():
    given = [document(text, n) for n, text in enumerate(("aaaaaaaaaaaaaaaa", "aabbaabbaabbaabb", "abababababababab"))]
    kept = list(scored(Perplexity("run", maximum=2.5, minimum=1.5))(given))
    assert [d.id for d in kept] == [1]
    assert kept[0].meta["bits_per_byte"] == pytest.approx((8 + 9 * math.log2(6)) / 16, abs=1e-4)
    step = scored(Perplexity("run", maximum=2.5, minimum=1.5))
    list(step([*given, document("")]))
    assert step.dropped == {"less than 1.5 bits per byte": 1, "more than 2.5 bits per byte": 1, "empty": 1}
    with pytest.raises(UserError, match="maximum 1 is below minimum 2"):
        Perplexity("run", 1, 2)


def good(rng, chinese):
    parts = list(CHINESE) if chinese else ENGLISH.split()
    return ("" if chinese else " ").join(rng.choices(parts, k=40))


def bad(rng, chinese):
    parts = (
        list("免费注册点击立即购买优惠客服电话登录会员彩票")
        if chinese
        else ["buy", "cheap", "click", "now", "free", "sale"]
    )
    return ("" if chinese else " ").join(rng.choices(parts + (list(CHINESE) if chinese else ENGLISH.split()), k=40))


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("sides")
    rng = random.Random(1)
    for name, make in (("good", good), ("bad", bad)):
        (folder / name).mkdir()
        texts = (make(rng, n % 2 == 0) for n in range(400))
        write_documents(folder / name / "documents.jsonl.zst", (document(text, str(n)) for n, text in enumerate(texts)))
    return folder


def test_a_classifier_tells_sides_apart_in_both_languages(sides, job):
    folder = job("classifier", TrainClassifier(str(sides / "good"), str(sides / "bad"), bits=14))
    account = json.loads((folder / "classifier.json").read_text())
    assert account["auc"] > 0.95
    assert sum(account["held_out"].values()) + sum(account["trained_on"].values()) == 800
    step = Classified(str(folder))
    rng = random.Random(2)
    for chinese in (True, False):
        given = [document(good(rng, chinese), n) for n in range(50)] + [
            document(bad(rng, chinese), -1) for _ in range(50)
        ]
        kept = list(step(given))
        assert sum(d.id >= 0 for d in kept) >= 45
        assert sum(d.id < 0 for d in kept) <= 5
        assert all(d.meta["quality"] >= 0.5 for d in kept)
    again = job("again", TrainClassifier(str(sides / "good"), str(sides / "bad"), bits=14))
    assert (again / "classifier.npy").read_bytes() == (folder / "classifier.npy").read_bytes()


def test_a_classifier_of_one_side_says_so(sides, context, job):
    write_documents(context.directory / "documents.jsonl.zst", [document(ENGLISH)])
    with pytest.raises(UserError, match="the texts are not of both sides"):
        job("one", TrainClassifier(str(context.directory), str(context.directory), bits=8))


def test_spelling():
    pytest.importorskip("symspellpy")
    step = Spelling(words=[])
    given = "A mesage to recieve. Beleive me: teh Qqxyzs of Wolfsburg.com, in mesage_it and /mesage, is wrnog."
    (result,) = step([document(given, language="en")])
    right = given.replace("A mesage", "A message").replace("Beleive", "Believe").replace("wrnog", "wrong")
    assert result.text == right, "recieve may be receive or relieve; teh is too short to say"
    assert step.counts == {"words corrected": 3}
    chinese = document("recieve", language="zh")
    assert list(step([chinese])) == [chinese]


def test_words_of_a_field_are_right_and_a_model_chooses(tmp_path):
    pytest.importorskip("symspellpy")
    (tmp_path / "words.txt").write_text("mesage\n")
    assert Spelling(words=[str(tmp_path / "words.txt")]).apply(document("mesage", language="en")).text == "mesage"
    step = Spelling(model="run")
    candidates = step.candidates("wolrd")
    assert "world" in candidates
    step.corrections["wolrd"] = ["world", "would"]

    class Knows:
        def bits_of_each(self, texts):
            return [len(text) - 29 * ("he would go" in text) - 25 * ("the world" in text) for text in texts]

    step.scorer = Knows()
    assert (
        step.apply(document("See. he wolrd go. In the wolrd.", language="en")).text == "See. he would go. In the world."
    )
    gain = 15.0
    step.scorer.bits_of_each = lambda texts: [gain * ("wolrd" in text) for text in texts]
    assert step.apply(document("The wolrd.", language="en")).text == "The wolrd.", "gains no more than the margin"
    gain = 15.1
    assert step.apply(document("The wolrd.", language="en")).text != "The wolrd."
    with pytest.raises(UserError, match="margin -1 must not be negative"):
        Spelling(model="run", margin=-1)


def test_many_texts_at_once_cost_what_each_costs():
    """Padding to the longest of a batch changes nothing."""
    texts = ["aab", "", "abababa", "b", *["aabb"] * 40]
    scorer = scored(Scorer("run"))
    assert scorer.bits_of_each(texts) == pytest.approx([scorer.bits(text)[0] for text in texts], rel=1e-5)
    assert scorer.bits_of_each(["a" * 30]) == pytest.approx([7 + math.log2(6)], rel=1e-5), "cut at the context of 8"


class Bigrams(torch.nn.Module):
    """The probability of each token behind each in a text, with one in a hundred for all others together."""

    context = 256

    def __init__(self, ids, size):
        super().__init__()
        counts = torch.full((size, size), 1e-2 / size)
        for first, second in pairwise(ids):
            counts[first, second] += 1
        self.logits = (counts / counts.sum(1, keepdim=True)).log()

    def forward(self, tokens_BT):
        return self.logits[tokens_BT]


def test_chinese_characters_of_one_sound_are_told_apart_by_a_model(job, tmp_path):
    pytest.importorskip("pypinyin")
    (tmp_path / "texts").mkdir()
    shuffled = ("".join(random.Random(n).sample(CHINESE, len(CHINESE))) for n in range(200))
    write_documents(tmp_path / "texts" / "documents.jsonl.zst", (document(t, str(n)) for n, t in enumerate(shuffled)))
    tokenizer = Tokenizer(job("tokenizer", TrainTokenizer(str(tmp_path / "texts"), 500)))
    step = Spelling(model="run")
    step.scorer.tokenizer = tokenizer
    clauses = [found[0] for found in CLAUSES.finditer(CHINESE)]
    known = [i for text in clauses for i in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
    step.scorer.model = Bigrams(known, tokenizer.vocabulary_size)
    slips = CHINESE.replace("农夫", "农父").replace("事情", "是情")
    (result,) = step([document(slips, language="zh")])
    assert result.text == CHINESE
    assert step.counts == {"characters corrected": 2}
    assert step.apply(document(CHINESE, language="zh")).text == CHINESE
    assert Spelling().apply(document(slips, language="zh")).text == slips, "not without a model"
    step.margin = 1000.0
    assert step.apply(document(slips, language="zh")).text == slips
