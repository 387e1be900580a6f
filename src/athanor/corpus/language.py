"""Which language a text is in, from its script: Chinese, English, or undetermined.

Chinese, Japanese and Korean tell themselves apart by their characters. Latin script is called English only if the text
uses English function words; otherwise it is "und-Latn", and any other script "und" (BCP 47). No model is needed.
"""

import re

from athanor.corpus.documents import UNDETERMINED, Document
from athanor.corpus.steps import Step

SAMPLE_LENGTH = 20_000  # characters looked at
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile("[\u3040-\u30ff]")
HANGUL = re.compile("[\uac00-\ud7af\u1100-\u11ff]")
LATIN_WORD = re.compile("[A-Za-z\u00c0-\u024f]+")
LETTER = re.compile(r"[^\W\d_]")
FUNCTION_WORDS = frozenset(
    """
    the of and to a in is that for it as was with be by on not he his but at are this have from or had an they which you
    were her all she there would their we him been has when who will no more if out so what up its about into than them
    can only other some could these two may then do any my now such like our over me most made after also did many
    before must through your should each how where those
    """.split()  # noqa: SIM905
)
ENGLISH = 0.15  # share of function words among Latin words; English prose has 0.4, French or German below 0.06


def detect_language(text: str) -> str:
    text = text[:SAMPLE_LENGTH]
    han, kana, hangul = len(HAN.findall(text)), len(KANA.findall(text)), len(HANGUL.findall(text))
    words = LATIN_WORD.findall(text)
    others = len(LETTER.findall(text)) - han - kana - hangul - sum(map(len, words))
    # A Han character says about as much as two thirds of an English word; kana and Hangul somewhat less.
    weights = {"han": 2 * (han + kana) / 3, "hangul": hangul / 2, "latin": float(len(words)), "other": others / 5}
    script = max(weights, key=lambda name: weights[name])
    if not weights[script]:
        return UNDETERMINED
    if script == "han":
        return "ja" if kana > 0.1 * (han + kana) else "zh"
    if script == "hangul":
        return "ko"
    if script == "latin":
        english = sum(word.lower() in FUNCTION_WORDS for word in words)
        return "en" if english >= ENGLISH * len(words) else "und-Latn"
    return UNDETERMINED


class DetectLanguage(Step):
    """Tags the documents whose source did not say their language.

    Args:
        keep: drop documents in other languages than these, whoever named the language. None keeps all.
        default: the tag of undetermined texts (such as code), where one is wanted.
    """

    name = "language"

    def __init__(self, keep: list[str] | None = None, default: str | None = None, only: list[str] | None = None):
        super().__init__(only)
        self.keep = keep
        self.default = default

    def apply(self, document: Document) -> Document | str:
        if document.language == UNDETERMINED:
            language = detect_language(document.text)
            if self.default and language.startswith(UNDETERMINED):
                language = self.default
            document = document._replace(language=language)
            self.counts[language] += 1
        if self.keep is not None and document.language not in self.keep:
            return f"language {document.language}"
        return document
