"""AutoTokenizer and our tokenizer give the same ids and the same text back."""

import json
import os
import random

import pytest

from athanor.corpus.tokenizer import Tokenizer, TrainTokenizer
from athanor.models.huggingface_tokenizer import export_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"

LINES = [
    "def area(width, height):",
    "    return width * height",
    "        if total > 12345:  # twelve",
    "the cat sat on the mat",
    "There are 3 apples and 17 pears; how many is that?",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "他买了3个苹果和17个梨。",
    "aaaa aaa aaaaaaa aa",
    "hello  world   and    more     spaces",
    "一二三四五六七八九十",
    "naïve café déjà vu",
    "x = y == z != w",
]
TEXTS = [
    *LINES,
    "",
    " ",
    "  ",
    "\n",
    "\t\tif x:\n\n        y  \n",
    " leading and trailing ",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 emoji",
    "龘鱻 rare 汉字",
    "▁ and ▁▁ and a ▁b",
    "<0xE2><0x0A> <0x41>",
    "é e\u0301 ﬁ Ⅷ １２",
    "\u200b\ufeff\u3000\xa0",
    "مرحبا שלום ไทย",
    "\x00\x01\x7f",
    *(" " * n for n in range(3, 40)),
    *("a" * n + " " * (n % 5) + "b" for n in range(1, 40)),
    *("-" * n for n in range(1, 30)),
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def both(request, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    trainer = TrainTokenizer(documents=[], vocabulary_size=420, model_type=request.param, character_coverage=1.0)
    (folder / "tokenizer.model").write_bytes(trainer.train(iter(LINES * 30)))
    export_tokenizer(folder / "tokenizer.model", folder / "out", context=256)
    # beside a Llama's config AutoTokenizer must not take it for Llama's own tokenizer
    (folder / "out/config.json").write_text(json.dumps({"model_type": "llama"}))
    return Tokenizer(folder / "tokenizer.model"), AutoTokenizer.from_pretrained(folder / "out")


def random_texts() -> list[str]:
    rng = random.Random(1)
    letters = "aab  \n的一不觉3👍é=()▁" + "".join(LINES)
    return ["".join(rng.choices(letters, k=rng.randrange(1, 60))) for _ in range(300)]


def test_ids_and_text_are_the_same(both, request):
    (mine, other), kind = both, request.node.callspec.params["both"]
    for text in TEXTS + random_texts():
        ids = mine.encode(text)
        found = other(text)["input_ids"]
        if kind == "bpe" or text in LINES:
            assert found == ids, repr(text)
        assert sorted(found) == sorted(ids), repr(text)  # of a unigram model, equal scores decide by rounding
        assert other.decode(ids) == other.decode(found) == text, repr(text)


def test_the_special_tokens_have_their_ids(both):
    mine, other = both
    for name, index in mine.special.items():
        assert other.convert_tokens_to_ids(name) == index
        assert other(name, split_special_tokens=True)["input_ids"] == mine.encode(name)
    assert [other.pad_token_id, other.bos_token_id, other.eos_token_id] == [mine.pad_id, mine.bos_id, mine.eos_id]
    assert (len(other), other.model_max_length) == (mine.vocabulary_size, 256)


def test_the_chat_template_is_ours(both):
    from athanor.data.chat import render_prompt

    mine, other = both
    messages = [{"role": "user", "content": "how many? 几个？"}, {"role": "assistant", "content": "17\n"},
                {"role": "user", "content": " more "}]  # fmt: skip
    found = other.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(found) == render_prompt(messages, mine)
