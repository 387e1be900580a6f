"""Good texts in either language, documents of them, and the part of a run that jobs of the corpus use."""

import contextlib
from pathlib import Path

from athanor.corpus.documents import Document

ENGLISH = (
    "The quick brown fox jumps over the lazy dog while the farmer watches from the gate. He has seen this before, and "
    "he does not care for it; the dog, on the other hand, has never seen a fox that would run so near to the house."
)
CHINESE = (
    "敏捷的棕色狐狸跳过了那只懒洋洋的狗，农夫站在门口看着这一切。他从前见过这样的事情，并不放在心上；"
    "可是那只狗却从来没有见过一只敢跑到离房子这么近的地方来的狐狸。"
)


def document(text, identity="d", source="s", language="und", **meta):
    return Document(identity, text, source, language, meta)


class Progress:
    """Notes what it is told and fails on a share above one."""

    def __init__(self):
        self.stages = []
        self.last = (0.0, 0.0)

    def stage(self, title):
        self.stages.append(title)

    def update(self, done, total, **fields):
        assert 0 <= done <= total
        self.last = (done, total)


class Context:
    """The part of a run that jobs of the corpus use."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.progress = Progress()

    @contextlib.contextmanager
    def temporary(self, name):
        path = self.directory / f"{name}.partial"
        try:
            yield path
            path.replace(self.directory / name)
        finally:
            path.unlink(missing_ok=True)


class Outputs:
    def __init__(self, directory):
        self.directory = Path(directory)

    def path(self, relative, verify=True):
        return self.directory / relative
