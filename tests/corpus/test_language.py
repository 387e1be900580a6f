"""Chinese or English by script; the rest is not called either."""

import gzip
import json

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.language import DetectLanguage, detect_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (CHINESE, "zh"),
        ("臺灣的學術研究由德國學者開創。", "zh"),
        ("使用 Python 的 asyncio 库可以写 concurrent code 而不用 threads，非常方便。", "zh"),
        ("The word 狐狸 means fox, and 狗 is what the dog is called in this language.", "en"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "ja"),
        ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.", "ko"),
        ("Le renard brun saute par-dessus le chien paresseux pendant que le fermier regarde.", "und-Latn"),
        ("Der schnelle braune Fuchs springt über den faulen Hund, während der Bauer zusieht.", "und-Latn"),
        ("Быстрая коричневая лиса прыгает через ленивую собаку.", "und"),
        ("12345 + 67890 = ?", "und"),
        ("", "und"),
    ],
)
def test_texts(text, language):
    assert detect_language(text) == language


def test_the_source_knows_better():
    step = DetectLanguage()
    result = list(step([document(ENGLISH, language="zh"), document(ENGLISH), document(CHINESE)]))
    assert [d.language for d in result] == ["zh", "en", "zh"]
    assert step.counts == {"en": 1, "zh": 1}


def test_keep_and_default():
    step = DetectLanguage(keep=["en"])
    given = [document(ENGLISH), document(CHINESE), document("x", language="fr"), document("42")]
    assert [d.text for d in step(given)] == [ENGLISH]
    assert step.dropped == {"language zh": 1, "language fr": 1, "language und": 1}
    (code,) = DetectLanguage(default="en")([document("x = f(y)")])
    assert code.language == "en"


def test_real_texts(shared):
    for name, key, language, least in (
        ("en_standardebooks/chapters", "text", "en", 0.995),
        ("en_c4_wiki_demo/c4_300", "text", "en", 0.98),
        ("zh_poetry/songci", "text", "zh", 0.995),
        ("zh_drcd_wiki/paragraphs", "text", "zh", 0.995),
        ("zh_howtocook/recipes", "text", "zh", 0.995),
    ):
        with gzip.open(shared / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            found = [detect_language(json.loads(line)[key]) for line, _ in zip(file, range(1000))]
        assert found.count(language) / len(found) >= least, name
