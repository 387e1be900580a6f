"""Names of persons by a trained model: a spaCy pipeline or a token classifier of transformers, given as a directory.

No model comes with athanor: download one, name its directory as an input of the experiment, and its hash is in the
lineage. For English and Chinese such are spaCy's en_core_web_sm and zh_core_web_sm, or a multilingual classifier on the
Hugging Face Hub. The model decides how many names are found; measure it on your own texts.
"""

import os
from collections.abc import Callable
from pathlib import Path

from athanor.errors import UserError

PERSON = ("PER", "PERSON", "B-PER", "I-PER", "B-PERSON", "I-PERSON", "NAME")
WINDOW = 1000  # characters a token classifier is given at a time; names do not cross lines where that can be helped

Recognizer = Callable[[str], list[tuple[int, int]]]


def recognizer(model: str | list[str]) -> Recognizer:
    """What finds (start, end) of each name in a text.

    Args:
        model: a directory, or the files in one.
    """
    folder = Path(model if isinstance(model, str) else os.path.commonpath([str(Path(path).parent) for path in model]))
    if (folder / "meta.json").is_file():
        return by_spacy(folder)
    if (folder / "config.json").is_file():
        return by_transformers(folder)
    raise UserError(
        f"{folder} has neither meta.json of a spaCy pipeline nor config.json of a transformers model; "
        "name the directory that has it."
    )


def by_spacy(folder: Path) -> Recognizer:
    try:
        import spacy
    except ImportError:
        raise UserError("finding names with a spaCy pipeline needs spaCy: pip install 'athanor[names]'.") from None
    pipeline = spacy.load(folder)
    pipeline.max_length = 10**9

    def find(text: str) -> list[tuple[int, int]]:
        return [(entity.start_char, entity.end_char) for entity in pipeline(text).ents if entity.label_ in PERSON]

    return find


def by_transformers(folder: Path) -> Recognizer:
    try:
        from transformers import pipeline
    except ImportError:
        raise UserError("finding names with this model needs transformers: pip install transformers.") from None
    return windowed(pipeline("token-classification", model=str(folder), aggregation_strategy="simple", device=-1))


def windowed(classify: Callable[[str], list[dict]]) -> Recognizer:
    """Of a classifier that takes short texts: {"entity_group", "start", "end"} of each entity."""

    def find(text: str) -> list[tuple[int, int]]:
        found = []
        for offset, window in windows(text):
            entities = [entity for entity in classify(window) if entity["entity_group"] in PERSON]
            found += [(offset + entity["start"], offset + entity["end"]) for entity in entities]
        return found

    return find


def windows(text: str) -> list[tuple[int, str]]:
    """(offset, piece) of at most WINDOW characters, cut after a newline, a full stop or a space where there is one."""
    pieces, start = [], 0
    while start < len(text):
        end = min(len(text), start + WINDOW)
        if end < len(text):
            breaks = (text.rfind(mark, start, end) + 1 for mark in ("\n", "。", ". ", "，", " "))
            end = next((place for place in breaks if place > start + WINDOW // 2), end)
        pieces.append((start, text[start:end]))
        start = end
    return pieces
