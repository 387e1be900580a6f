"""One spelling for one text."""

import random
import sys
import unicodedata

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.normalize import Normalize, normalize
from athanor.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301", "é"),
        ("か\u3099", "が"),
        ("a\r\nb\rc\u2028d\x85e\x0cf", "a\nb\nc\nd\ne\nf"),
        ("a\u00a0b\u2009c\u202fd", "a b c d"),
        ("a\x00b\x1bc\x7fd\x9fe", "abcde"),
        ("zero\u200bwidth\ufeff so\u00adft \u202eleft\u2066", "zerowidth soft left"),
        ("half \ud800 pair\ufffe", "half  pair"),
        ("trailing  \nspaces\t\n\u3000\n end ", "trailing\nspaces\n\n end"),
        ("a\n\n\n\n\nb\n\n", "a\n\nb"),
        ("if x:\n\ty = 1\n    z  =  2", "if x:\n\ty = 1\n    z  =  2"),
        ("\u3000\u3000第一段。\n\u3000\u3000第二段。", "\u3000\u3000第一段。\n\u3000\u3000第二段。"),
        ("می\u200cخواهم 👨\u200d👩\u200d👧", "می\u200cخواهم 👨\u200d👩\u200d👧"),
        ("“全角”！，。ＡＢＣ①", "“全角”！，。ＡＢＣ①"),
        (ENGLISH, ENGLISH),
        (CHINESE, CHINESE),
    ],
)
def test_each_rule(text, expected):
    assert normalize(text) == expected


def test_idempotent_and_clean_on_noise():
    rng = random.Random(1)
    alphabet = "ab 中\n\r\t\u00a0\u200b\u0301\u3099\u3000\x00\x0c\x85\u2028\ufeff\ud800e\u0323か"
    for _ in range(3000):
        text = normalize("".join(rng.choices(alphabet, k=rng.randint(0, 30))))
        assert normalize(text) == text
        assert unicodedata.is_normalized("NFC", text)
        assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n", "\t"}
        assert "\n\n\n" not in text
        assert not any(line != line.rstrip() for line in text.split("\n"))


def test_the_step_counts():
    step = Normalize()
    given = [document("same"), document("not\r\nsame"), document("\u200b \n"), document("")]
    assert [d.text for d in step(given)] == ["same", "not\nsame"]
    assert step.counts == {"changed": 1}
    assert step.dropped == {"empty": 2}


def test_spaces_collapse_only_on_demand_and_only_inside():
    (result,) = Normalize(collapse_spaces=True)([document("    indented  code\t\tand   text")])
    assert result.text == "    indented code and text"


def test_full_width_letters_become_ascii_and_chinese_marks_stay():
    step = Normalize(half_width=True)
    assert step.apply(document("ＡＢＣ１２３ａｚ，（全角）！")).text == "ABC123az，（全角）！"
    assert Normalize().apply(document("ＡＢＣ，")).text == "ＡＢＣ，"


def test_mojibake_is_repaired_and_sound_text_is_not_touched():
    pytest.importorskip("ftfy")
    step = Normalize(mojibake=True)
    for sound in ("“naïve” café", "他说：“好”", "l’été, 3 µm, £5", "&amp; stays"):
        assert step.apply(document(sound)).text == sound
    assert step.apply(document("cafÃ© â€œnaÃ¯veâ€\x9d &amp; more")).text == "café “naïve” &amp; more"
    assert step.apply(document("他说：“你好”".encode().decode("latin-1"))).text == "他说：“你好”"


def test_scripts_of_chinese():
    pytest.importorskip("opencc")
    simplified, traditional = "头发发现，皇后在后面，干燥的干部", "頭髮發現，皇后在後面，乾燥的幹部"
    assert Normalize(script="simplified").apply(document(traditional, language="zh")).text == simplified
    assert Normalize(script="traditional").apply(document(simplified)).text == traditional
    assert Normalize(script="simplified").apply(document("頭髪", language="ja")).text == "頭髪"
    with pytest.raises(UserError, match="script 'pinyin' must be simplified or traditional"):
        Normalize(script="pinyin")


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"needs the package ftfy; install it with `pip install 'athanor\[text\]'`"):
        Normalize(mojibake=True).apply(document("x"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("March 7, 2019", "2019-03-07"),
        ("Mar. 7th 2019", "2019-03-07"),
        ("on 7 March 2019.", "on 2019-03-07."),
        ("the 21st of May, 1999", "the 1999-05-21"),
        ("2019/3/7 10:00", "2019-03-07 10:00"),
        ("2019年3月7日", "2019-03-07"),
        ("２０１９年３月７号", "2019-03-07"),
        ("二〇一九年三月七日", "2019-03-07"),
        ("一九九九年十二月三十一日", "1999-12-31"),
        ("7/3/2019", "7/3/2019"),
        ("2019/13/7", "2019/13/7"),
        ("February 30, 2019", "February 30, 2019"),
        ("12019/3/7", "12019/3/7"),
        ("2019/3/7/index", "2019/3/7/index"),
        ("1,234,567.5 and 12,34 and 1,2345 and 3,000", "1234567.5 and 12,34 and 1,2345 and 3000"),
        ("f(1,200) v1.2,300", "f(1200) v1.2,300"),
    ],
)
def test_dates_and_numbers(text, expected):
    step = Normalize(half_width=True, dates=True, numbers=True)
    assert step.apply(document(text)).text == expected
    assert Normalize().apply(document("March 7, 2019")).text == "March 7, 2019"
