"""Passages go the second time they come, and nothing else does."""

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.passages import RepeatedPassages, split
from athanor.errors import UserError


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, f"{CHINESE}\n\n{ENGLISH}\n", "", "\n\n a. b?! c", "3.14 is pi. So"])
def test_passages_joined_are_the_text(text):
    for level in ("paragraph", "sentence"):
        assert "".join(split(text, level)) == text


def test_sentences_in_both_languages():
    assert split("It is 3.14. “Yes.” No!\nEnd", "sentence") == ["It is 3.14. ", "“Yes.” ", "No!\n", "End"]
    assert split("他说：“好。”我走了！真的？\n对", "sentence") == ["他说：“好。”", "我走了！", "真的？\n", "对"]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_a_paragraph_goes_the_second_time(text):
    step = RepeatedPassages(minimum=10, min_left=0.1)
    own = [
        f"这是第{n}篇文章自己的段落，和别的都不一样。\nAnd {n} more words of its own, all in one line." for n in (1, 2)
    ]
    given = [document(f"{part}\n\n{text}\nshort line", n) for n, part in enumerate(own)]
    result = list(step(given))
    assert result[0] == given[0]
    assert result[1].text == f"{own[1]}\n\nshort line"
    assert step.counts == {"passages removed": 1, "documents shortened": 1}


def test_short_passages_may_recur_and_case_does_not_tell_apart():
    step = RepeatedPassages(minimum=5, min_left=0.0)
    texts = ["Chapter 1\nOne two three four five", "Chapter 1\nONE two, three: four five\nmore"]
    assert [d.text for d in step(map(document, texts))] == [texts[0], "Chapter 1\nmore"]


def test_what_is_mostly_repeated_goes_whole():
    step = RepeatedPassages(min_left=0.5)
    assert len(list(step([document(ENGLISH), document(ENGLISH + "\nnew"), document(ENGLISH)]))) == 1
    assert step.dropped == {"mostly repeated passages": 2}


def test_spans_of_three_sentences():
    """Two sentences in common are no run of three; three are, wherever they stand."""
    a, b, c, d, e = (f"This is sentence {n} of the lot, and quite a long one it is. " for n in range(5))
    step = RepeatedPassages("sentence", span=3, minimum=10, min_left=0.0)
    first, second, third = (
        next(iter(step([document(text)]))).text for text in (a + b + c, a + b + d, e + a + b + c + e)
    )
    assert first == a + b + c
    assert second == a + b + d
    assert third == (e + e).rstrip()


def test_within_one_document():
    step = RepeatedPassages(min_left=0.0)
    assert [d.text for d in step([document(f"{ENGLISH}\n{ENGLISH}\nend")])] == [f"{ENGLISH}\nend"]


def test_settings_out_of_range():
    with pytest.raises(UserError, match="span 0 must be at least 1"):
        RepeatedPassages(span=0)
    with pytest.raises(UserError, match=r"min_left 2 must lie between 0 and 1"):
        RepeatedPassages(min_left=2)
