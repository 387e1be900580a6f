"""Gopher's, C4's and FineWeb's rules: each by hand in both languages, and the same decisions as datatrove's."""

import gzip
import json
import random

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.c4 import C4, sentences
from athanor.corpus.fineweb import FineWeb
from athanor.corpus.gopher import GopherQuality, GopherRepetition, Runs
from athanor.corpus.language import detect_language
from athanor.corpus.words import ALPHABETIC, MARKS, Parts, Words, divide, words


def reason(step, text):
    result = step.apply(document(text))
    return result if isinstance(result, str) else None


def test_words():
    assert divide("Don't cannot he’s well-known, f(x, 3.14) U.S. www.a.cn/b.") == [
        *("Do", "n't", "can", "not", "he", "’s", "well", "-", "known", ",", "f(x", ",", "3.14", ")", "U.S."),
        *("www.a.cn/b", "."),
    ]
    assert divide("我用Python3写，20行。") == ["我", "用", "Python3", "写", "，", "20", "行", "。"]


def test_what_is_known_of_words_by_hand():
    found = Words("The cat, the DOG: 42 of ##", Parts())
    assert (found.count, found.marks, found.characters, found.alphabetic) == (10, 4, 16, 5)
    assert (found.stop, found.unspaced) == (2, False)
    chinese = Words("我们的猫，在这里。of the", Parts())
    assert (chinese.count, chinese.marks, chinese.alphabetic, chinese.unspaced) == (11, 2, 9, True)
    assert chinese.stop == 4
    assert Words(" \n", Parts()).count == 0


def test_words_do_not_depend_on_what_was_seen_before():
    texts = [ENGLISH, CHINESE, "x" * 9000 + " y" * 9000, *(f"{n} w{n} " * 3 for n in range(5000))]
    warm = Parts()
    for text in texts:
        one, other = Words(text, warm), Words(text, Parts())
        assert one.lengths.tolist() == other.lengths.tolist()
        assert {name: value for name, value in vars(one).items() if isinstance(value, int)} == {
            name: value for name, value in vars(other).items() if isinstance(value, int)
        }


MARKED = """“Who's there?” (he said) well-known, 'quoted' men's, U.S. Mr. Smith’s etc.) e.g., cannot, Cannot.
and/or ): :) x): (it's) don't, 3,000 4.5 2011, (1998). 20-year 9-11 B2B 10kg word.. end...
a.b.c “a.” A. x. Ünï. café, naïve's 's S’s man’s.
``code``: [12], *bold* a—b - -- x- -y é-à
semi;colon http://a.com/b. me@b.org, “我用Python3写，20行。”（对）『引』 ‘a’ ½ m² x\x1cy"""


def test_words_as_they_are_divided_one_by_one():
    """Arrays of characters give the words that the patterns give: where marks meet letters, digits and one another."""
    rng = random.Random(1)
    ways = ["".join(rng.choices(MARKED, k=200)) for _ in range(150)]
    ways += [" ".join(rng.choices(MARKED.split(), k=50)) for _ in range(50)]
    ways += ["".join(rng.choices("ab-.,'’s() S\")1我，", k=100)) for _ in range(200)]
    for text in (MARKED, *ways, "x" * 70_000 + " y, " * 20_000 + "我" * 70_000, "\ud800 \U00020001\U0001d400 \0."):
        expected, found = divide(text), Words(text, Parts())
        assert found.lengths.tolist() == list(map(len, expected)), text
        assert len(set(zip(found.numbers.tolist(), expected))) == len(set(expected)) == len(set(found.numbers.tolist()))
        assert found.marks == sum(not w[0].isalnum() and MARKS.issuperset(w) for w in expected)
        assert found.alphabetic == sum(ALPHABETIC.search(word) is not None for word in expected)


def run_lengths(text, n, which):
    """Gopher's two measures, straight from their definition."""
    tokens = divide(text)
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if which == "top":
        best = max(dict.fromkeys(runs), key=runs.count, default=())
        return (sum(map(len, best)) + n - 1) * runs.count(best) if best else 0
    seen, total, i = set(), 0, 0
    while i < len(runs):
        if runs[i] in seen:
            total, i = total + sum(map(len, runs[i])), i + n
        else:
            seen.add(runs[i])
            i += 1
    return total


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        CHINESE,
        ENGLISH * 3,
        CHINESE + ENGLISH + CHINESE[10:],
        "a b c a b c a b",
        "a a a a a a a a a a a a",
        "one",
        "",
    ],
)
def test_repetition_is_exact_above_its_limit_and_never_above_the_truth(text):
    for n in range(2, 11):
        for limit in (0, 5, 50, 10_000):
            for which in ("top", "repeated"):
                truth, found = run_lengths(text, n, which), getattr(Runs(words(text)), which)(n, limit)
                assert found == truth if truth > limit else found <= limit, (n, limit, which)


@pytest.mark.parametrize("text", [ENGLISH * 2, CHINESE], ids=["english", "chinese"])
def test_gopher_quality_by_rule(text):
    step = GopherQuality()
    assert reason(step, text) is None
    assert reason(step, text[:50]) == "fewer than 50 words"
    assert reason(GopherQuality(max_words=60), text) == "more than 60 words"
    assert reason(step, "#" * 30 + " " + text) == "too many hash signs"
    assert reason(step, "… " * 20 + text) == "too many ellipses"
    lines = "\n".join(text[start : start + 8] for start in range(0, len(text), 8))
    bullets = GopherQuality(min_alphabetic=None, min_word_length=None)
    assert reason(bullets, "- " + lines.replace("\n", "\n- ")) == "mostly bullets"
    assert (
        reason(GopherQuality(max_symbols=None, min_word_length=None), lines.replace("\n", "...\n"))
        == "lines that break off"
    )
    assert reason(step, text + " 1234 5678" * 30) == "too few words with letters"


def test_gopher_quality_asks_each_script_its_own():
    assert reason(GopherQuality(), "Rindfleischetikettierung " * 60) == "long words"
    assert reason(GopherQuality(), "a b " * 60) == "short words"
    assert reason(GopherQuality(), "house tree water field stone river " * 10) == "too few stop words"
    assert reason(GopherQuality(), "房屋树木河流石头田野高山大海白云" * 10) == "too few stop words"
    assert reason(GopherQuality(min_stop_words=None), "房屋树木河流石头田野高山大海白云" * 10) is None
    assert reason(GopherQuality(), "!!! ... ???") == "no words"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_gopher_repetition_by_rule(text):
    step = GopherRepetition()
    assert reason(step, text) is None
    assert reason(step, "\n\n".join([text] * 2)) == "repeated paragraphs"
    assert reason(step, "\n".join([text] * 2)) == "repeated lines"
    assert reason(step, " ".join([text] * 2)) == "repeated runs of 5 words"
    assert reason(step, text[:20] * 5).startswith(("one run of", "repeated runs"))
    assert reason(GopherRepetition(max_lines=None), "\n".join([text] * 2)) == "repeated lines by characters"
    assert reason(step, "") == "empty"


def test_sentences():
    assert sentences("One. Two! Three? 3.14 is four") == 4
    assert sentences("Mr. Smith of the U.S. Navy met J. Doe.") == 1
    assert sentences("一。二！三？四") == 4
    assert sentences("他说：“一。”我走") == 2
    assert sentences("wait... what?! No") == 3
    assert sentences("." * 100_000 + " x") == 2, "in a moment"


def test_c4_lines_in_both_languages():
    english = [f"This is line number {n}, which says something." for n in range(5)]
    chinese = [f"这是第{n}行文字，它说了一些事情。" for n in range(5)]
    for good, bad in (
        (
            english,
            [
                "No full stop",
                "Too few.",
                "Enable JavaScript to see it.",
                "See our privacy policy first.",
                "Broken off in the...",
            ],
        ),
        (chinese, ["没有句号", "太短。", "请启用JavaScript浏览本页。", "请阅读我们的隐私政策后继续。"]),
    ):
        step = C4()
        assert step.apply(document("\n".join([*good, *bad]))).text == "\n".join(good)
        assert sum(step.counts.values()) == len(bad)
        assert reason(step, "\n".join(good[:4])) == "fewer than 5 sentences"
        assert reason(step, "\n".join([*good, good[0][:-1] + " { }" + good[0][-1]])) == "a line with a curly bracket"
        assert reason(step, "\n".join([*good, "Lorem ipsum dolor sit amet."])) == "a line of lorem ipsum"
    cited = "\n".join(english).replace("something", "something[12]").replace("line", "line[citation needed]")
    assert C4().apply(document(cited)).text == "\n".join(english)
    assert (
        reason(C4(max_word_length=20), "\n".join([*english[:4], "x" * 21 + " is a word."])) == "fewer than 5 sentences"
    )


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_fineweb_by_rule(text):
    step = FineWeb()
    sentence = text[: len(text) // 2]
    assert reason(step, text) is None
    assert reason(step, "\n".join(f"{n} {sentence}" for n in range(20))) == "few lines end with punctuation"
    short = "是的。\n" if text == CHINESE else "Yes, it is.\n"
    assert reason(step, text + "\n" + short * 5) == "mostly short lines"
    assert reason(step, f"{text}\n{text}") == "repeated lines"
    assert reason(FineWeb(max_short=1), "\n".join(f"{n}{short.strip()}" for n in range(20))) in ("a list", None)
    assert (
        reason(FineWeb(max_short=1, max_newlines=0.05), "\n".join(f"{n}{short.strip()}" for n in range(20))) == "a list"
    )
    assert reason(step, "\n \n") == "empty"


def test_the_same_decisions_as_datatrove(shared):
    """On web text, encyclopedia, proposals, books and bare pages; see benchmarks/corpus.py for more of them."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    pytest.importorskip("spacy")
    from datatrove.data import Document as Theirs
    from loguru import logger

    logger.remove()

    def rows(name):
        with gzip.open(shared / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    texts = [row["text"][:20_000] for row in rows("en_c4_wiki_demo/c4_300.jsonl.gz")[::3]]
    texts += [row["text"][:20_000] for row in rows("en_c4_wiki_demo/wikipedia_30.jsonl.gz")[::3]]
    texts += [row["text"][:20_000] for row in rows("en_peps/peps.jsonl.gz")[::60]]
    texts += [row["text"][:20_000] for row in rows("en_standardebooks/chapters.jsonl.gz")[::110]]
    texts += [row["expected_text"][:20_000] for row in rows("html_readability/pages.jsonl.gz")[::3]]
    texts = [text for text in texts if detect_language(text) == "en"]
    for theirs, ours in (
        (filters.GopherQualityFilter(), GopherQuality()),
        (filters.GopherRepetitionFilter(), GopherRepetition()),
        (filters.C4QualityFilter(), C4()),
        (filters.FineWebQualityFilter(), FineWeb()),
    ):
        accepted = [theirs.filter(Theirs(text, "")) is True for text in texts]
        assert 0.3 < sum(accepted) / len(texts) < 0.99, "both decisions occur"
        same = sum(kept == (reason(ours, text) is None) for kept, text in zip(accepted, texts))
        assert same >= 0.99 * len(texts), ours.name


def test_a_line_of_javascript_with_a_bracket_costs_the_line_alone():
    """The order of the questions is datatrove's: such a line goes before its bracket is seen."""
    good = "\n".join(f"This is line number {n}, which says something." for n in range(5))
    assert C4().apply(document(good + "\nUse JavaScript { here }.")).text == good
