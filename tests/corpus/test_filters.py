"""Each rule by hand, and the same of Chinese as of English."""

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.filters import Length, Quality, letters, repeated_lines, repeated_ngrams
from athanor.corpus.units import ngrams, units
from athanor.errors import UserError


def reason(step, text):
    result = step.apply(document(text))
    return result if isinstance(result, str) else None


def test_units():
    assert units("Don’t stop, 3 times; x_1!") == ["Don’t", "stop", "3", "times", "x", "1"]
    assert units("我用Python3写，20行。") == ["我", "用", "Python3", "写", "20", "行"]
    assert units("カナ 한국어 𠀀 ภาษ") == ["カ", "ナ", "한국어", "𠀀", "ภ", "า", "ษ"]
    assert units(" …，。 ") == []


def test_ngrams():
    assert ngrams(["a", "b", "c", "d"], 3) == ["a b c", "b c d"]
    assert ngrams(["a", "b"], 3) == ["a b"]
    assert ngrams([], 3) == []


def test_measures_by_hand():
    assert letters("ab c1 .") == 3 / 5
    assert letters("中文，1") == 2 / 4
    assert letters(" \n") == 0
    assert repeated_lines("ab\n\nab\n cd ef \nab") == pytest.approx(4 / 11)
    assert repeated_lines("") == 0
    assert repeated_ngrams(list("abcabc"), 2) == pytest.approx(1 - 3 / 5)
    assert repeated_ngrams([], 2) == 0


def test_length_counts_words_or_characters_and_is_inclusive():
    step = Length(3, 4)
    assert [reason(step, text) for text in ("one two", "one two three", "一二三四")] == [
        "shorter than 3 units",
        None,
        None,
    ]
    assert reason(step, "一二三四五") == "longer than 4 units"
    with pytest.raises(UserError, match="maximum 2 is below minimum 3"):
        Length(3, 2)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_good_text_passes_and_bad_text_of_the_same_words_does_not(text):
    step = Quality()
    assert reason(step, text) is None
    assert reason(step, "\n".join([text] * 3)) == "repeated lines"
    assert reason(step, " ".join([text] * 3)) == "repeated n-grams"
    units_of = units(text)
    assert reason(step, " | ".join(units_of)) in ("too few letters", "too many symbols")
    assert reason(step, text + " 0123456789" * (len(text) // 10)) == "too few letters"


def test_symbols_count_by_run_and_per_unit():
    words = units(ENGLISH)[:20]
    ruled = " ".join(words) + "\n" + "=" * 30
    assert reason(Quality(max_symbols=0.04, min_letters=None), ruled) == "too many symbols"
    assert reason(Quality(max_symbols=0.05, min_letters=None), ruled) is None


def test_word_length_is_asked_only_of_words_between_spaces():
    shorts, longs = (
        "a b c d e f g h i j k l",
        "Donaudampfschifffahrtsgesellschaft Rechtsschutzversicherung Siebentausend",
    )
    assert reason(Quality(), shorts) == "short words"
    assert reason(Quality(), longs) == "long words"
    assert reason(Quality(min_word_length=None, max_word_length=None), shorts) is None
    assert reason(Quality(), CHINESE + " a b c d e") is None, "mostly Chinese"
    assert reason(Quality(), "。".join(CHINESE)) is None or "word" not in reason(Quality(), "。".join(CHINESE))


def test_no_words():
    assert reason(Quality(), "…… !!! ——") == "no words"


def test_every_rule_can_be_switched_off():
    step = Quality(None, None, None, None, min_word_length=None, max_word_length=None)
    assert reason(step, "a | | | 0123456789 " * 50) is None


def test_only_samples_and_counts():
    step = Length(3, only=["strict"])
    given = [document(f"{n}", source=source) for n in range(5) for source in ("strict", "free")]
    assert [d.source for d in step(given)] == ["free"] * 5
    assert step.dropped == {"shorter than 3 units": 5}
    assert step.samples == {"shorter than 3 units": ["0", "1", "2"]}
    long = Length(maximum=20)
    list(long([document("word " * 500)]))
    assert [len(text) for text in long.samples["longer than 20 units"]] == [200]
