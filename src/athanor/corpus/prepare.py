"""Raw documents to clean ones: sources through a chain of steps into one file, with an account of every loss."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from athanor.corpus import parts
from athanor.corpus.documents import FILENAME, Document, write_documents
from athanor.corpus.sources import Source
from athanor.corpus.steps import Step
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.corpus.executors import Work
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
        work, incoming, passed = self.parts(run)
        run.progress.stage("cleaning")
        kept = {source.name: Counter(documents=0, bytes=0) for source in self.sources}
        languages: dict[str, Counter[str]] = {}
        lengths: dict[str, Counter[int]] = {}
        begun = len(passed) - 1  # steps that the parts have been through
        left = [0] * (len(self.steps) - begun + 1)

        def read() -> Iterator[Document]:
            total = sum(source.bytes_total for source in self.sources)
            done = 0
            for source in self.sources:
                for document in source:
                    incoming[source.name].update(documents=1, bytes=document.size)
                    run.progress.update(done + source.bytes_read, total, documents=left[0], kept=left[-1])
                    yield document
                done += source.bytes_total
                run.progress.update(done, total, documents=left[0], kept=left[-1])

        def gathered(work: "Work") -> Iterator[Document]:
            for document in parts.documents_of(self, work.parts, work.folder):
                yield document
                run.progress.update(left[0], passed[-1], documents=passed[0], kept=left[-1])

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
            if not left[-1]:
                raise UserError(self.why_empty(passed[0] if work else left[0]))

        documents = gathered(work) if work else read()
        count = write_documents(run.directory / FILENAME, checked(parts.flow(documents, self.steps[begun:], left)))
        passed = [*passed[:-1], *left]

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
        if work:
            parts.clear(work.folder)
        return {
            "documents": count,
            "bytes": sum(counts["bytes"] for counts in languages.values()),
            "dropped": sum(step.dropped.total() for step in self.steps),
        }

    def parts(self, run: "RunContext") -> tuple["Work | None", dict[str, Counter[str]], list[int]]:
        """(where the parts are, once all are made; what came from each source; how many documents came to each step
        that they have been through, and out of the last), or None, nothing and [0] where it is not worth the while.
        """
        nothing = {source.name: Counter(documents=0, bytes=0) for source in self.sources}
        if (experiment := getattr(run, "experiment", None)) is None:
            return None, nothing, [0]
        from athanor.corpus.executors import Local, executor_of, work_of

        executor = executor_of(experiment)
        work = work_of(experiment, self, executor)
        alone = type(executor) is Local and executor.count(work) < 2 and not work.folder.exists()
        if len(work.parts) < 2 or alone or not parts.leading(self.steps):
            return None, nothing, [0]
        run.progress.stage("cleaning parts")
        total = sum(part.size for part in work.parts)
        done = total - sum(part.size for part in work.missing())
        run.progress.update(done, total, parts=len(work.parts))
        for part in executor.make(work):
            done += part.size
            run.progress.update(done, total, parts=len(work.parts))
        return work, *parts.gather(self, work.parts, work.folder)

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
