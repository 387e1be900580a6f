"""Raw documents to clean ones: sources through a chain of steps into one file, with an account of every loss."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from athanor.corpus.documents import FILENAME, Document, write_documents
from athanor.corpus.sources import Source
from athanor.corpus.steps import Step
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.runs.context import RunContext


class PrepareDocuments:
    """Writes documents.jsonl.zst and cleaning.json.

        {"sources": {name: {"documents", "bytes", "licence", "skipped": {reason: n}, "faults": {kind: its first},
        "kept": {"documents", "bytes"}}},
         "steps": [{"name", "only", "in", "out", "dropped": {reason: n}, "samples": {reason: [text]},
                    "counts": {what: n}, "details": {what: JSON}}],
         "languages": {code: {"documents", "bytes", "characters": {l: documents of l to 2 l - 1 characters}}}}

    Bytes are of UTF-8 text; those of `sources` are before cleaning, those of `kept` and of `languages` after.

    Args:
        sources: read in this order.
        steps: applied in this order.
    """

    def __init__(self, sources: list[Source], steps: list[Step]):
        self.sources = sources
        self.steps = steps
        names = [source.name for source in sources]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UserError(f"two sources are named {', '.join(sorted(repeated))}; give each a name of its own.")
        for step in steps:
            if unknown := set(step.only or ()) - set(names):
                raise UserError(
                    f"step {step.name!r} is for sources that do not exist: {', '.join(sorted(unknown))}; "
                    f"there are {', '.join(names)}."
                )

    def run(self, run: "RunContext") -> dict[str, float]:
        run.progress.stage("cleaning")
        incoming = {source.name: Counter(documents=0, bytes=0) for source in self.sources}
        kept = {source.name: Counter(documents=0, bytes=0) for source in self.sources}
        languages: dict[str, Counter[str]] = {}
        lengths: dict[str, Counter[int]] = {}
        passed = [0] * (len(self.steps) + 1)  # documents that came to each step, and to the end

        def read() -> Iterator[Document]:
            total = sum(source.bytes_total for source in self.sources)
            done = 0
            for source in self.sources:
                for document in source:
                    incoming[source.name].update(documents=1, bytes=document.size)
                    run.progress.update(done + source.bytes_read, total, documents=passed[0], kept=passed[-1])
                    yield document
                done += source.bytes_total
                run.progress.update(done, total, documents=passed[0], kept=passed[-1])

        def counting(documents: Iterable[Document], position: int) -> Iterator[Document]:
            for document in documents:
                passed[position] += 1
                yield document

        def checked(documents: Iterable[Document]) -> Iterator[Document]:
            for document in documents:
                if document.meta.get("format") == "html":
                    raise UserError(
                        f"source {document.source} has web pages that are still markup; "
                        "add the step athanor.corpus.extract.ExtractHtml."
                    )
                languages.setdefault(document.language, Counter()).update(documents=1, bytes=document.size)
                lengths.setdefault(document.language, Counter())[1 << max(0, len(document.text).bit_length() - 1)] += 1
                if document.source in kept:
                    kept[document.source].update(documents=1, bytes=document.size)
                yield document
            if not passed[-1]:
                raise UserError(self.why_empty(passed[0]))

        stream: Iterable[Document] = counting(read(), 0)
        for position, step in enumerate(self.steps, 1):
            stream = counting(step(stream), position)
        count = write_documents(run.directory / FILENAME, checked(stream))

        account = {
            "sources": {
                source.name: {
                    **incoming[source.name],
                    "licence": source.licence,
                    "skipped": dict(source.skipped.most_common()),
                    **({"faults": source.faults} if source.faults else {}),
                    "kept": dict(kept[source.name]),
                }
                for source in self.sources
            },
            "steps": [
                {
                    "name": step.name,
                    "only": step.only,
                    "in": passed[position],
                    "out": passed[position + 1],
                    "dropped": dict(step.dropped.most_common()),
                    "samples": step.samples,
                    "counts": dict(step.counts.most_common()),
                    "details": step.details,
                }
                for position, step in enumerate(self.steps)
            ],
            "languages": {
                code: {**languages[code], "characters": {str(low): n for low, n in sorted(lengths[code].items())}}
                for code in sorted(languages)
            },
        }
        with run.temporary("cleaning.json") as path:
            path.write_text(json.dumps(account, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return {
            "documents": count,
            "bytes": sum(counts["bytes"] for counts in languages.values()),
            "dropped": sum(step.dropped.total() for step in self.steps),
        }

    def why_empty(self, documents: int) -> str:
        if not documents:
            skipped = sum((source.skipped for source in self.sources), Counter())
            reason = (
                f" (skipped: {', '.join(f'{count} {reason}' for reason, count in skipped.most_common(3))})"
                if skipped
                else ""
            )
            return f"the sources gave no document{reason}; check `inputs` and the sources' keys."
        step = max(self.steps, key=lambda step: step.dropped.total())
        reason, count = step.dropped.most_common(1)[0]
        return (
            f"no document is left of {documents}: step {step.name!r} dropped the most, {step.dropped.total()}, "
            f"of which {count} for {reason!r}; loosen it."
        )
