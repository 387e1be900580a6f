"""Cleaning beside datatrove, on the shared data: the same decisions, how much faster, and what duplicates are found.

    pip install -e '.[peers]'
    python benchmarks/corpus.py [--data DIRECTORY] [--rounds 3] [--megabytes 4] [filters] [duplicates] [planted] [scale]

Sides take turns in one process, round by round, measured in CPU seconds; a first round is not counted. Each ratio is
the median over the rounds. What our filters remember of words is forgotten before each round; spaCy's cache stays warm.
`scale` makes a million synthetic documents (minutes) and is not run by default.
"""

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from athanor.corpus import words
from athanor.corpus.c4 import C4
from athanor.corpus.deduplicate import NearDuplicates, SimilarDuplicates
from athanor.corpus.documents import Document
from athanor.corpus.fineweb import FineWeb
from athanor.corpus.gopher import GopherQuality, GopherRepetition
from athanor.corpus.language import detect_language
from athanor.corpus.sources import SURROGATE

DATA = Path(os.environ.get("ATHANOR_DATA_ROOT", Path(__file__).resolve().parents[2] / "shared" / "data"))


def rows(name: str) -> list[dict]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def figure(name: str, value: float) -> None:
    print(f"FIGURE {name} {value:.4f}", flush=True)


def english(megabytes: float) -> list[str]:
    """Web text, encyclopedia, proposals, books, articles and what Readability leaves of pages; long ones cut."""
    sources = [
        [row["text"] for row in rows("en_c4_wiki_demo/c4_300.jsonl.gz")],
        [row["text"] for row in rows("en_c4_wiki_demo/wikipedia_30.jsonl.gz")],
        [row["article_body"] for row in rows("html_article_extraction/pages.jsonl.gz")],
        [row["expected_text"] for row in rows("html_readability/pages.jsonl.gz")],
        [row["text"] for row in rows("en_peps/peps.jsonl.gz")],
        [row["text"] for row in rows("en_standardebooks/chapters.jsonl.gz")],
    ]
    texts = [SURROGATE.sub("\ufffd", text)[:50_000] for source in sources for text in source if text]
    random.Random(1).shuffle(texts)
    size, chosen = 0, []
    for text in texts:
        if detect_language(text) == "en":
            chosen.append(text)
            size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return chosen


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(rounds: int, *sides: Callable[[], object]) -> list[list[float]]:
    """CPU seconds of each side in each round, after one that is not counted."""
    times = [[seconds(side) for side in sides] for _ in range(rounds + 1)][1:]
    return [list(column) for column in zip(*times)]


def filters(arguments: argparse.Namespace) -> None:
    from datatrove.data import Document as Theirs
    from datatrove.pipeline import filters as theirs
    from datatrove.utils.text import split_into_parts
    from loguru import logger

    logger.remove()
    texts = english(arguments.megabytes)
    pairs = [
        (theirs.GopherQualityFilter(), GopherQuality()),
        (theirs.GopherRepetitionFilter(), GopherRepetition()),
        (theirs.C4QualityFilter(), C4()),
        (theirs.FineWebQualityFilter(), FineWeb()),
    ]
    documents = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    print(f"{len(texts)} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB")
    for peer, step in pairs:
        differing = []
        accepted = 0
        for text, document in zip(texts, documents):
            verdict, own = peer.filter(Theirs(text, "")), step.apply(document)
            accepted += verdict is True
            if (verdict is True) == isinstance(own, str):
                differing.append((verdict, own if isinstance(own, str) else "kept", text[:60].replace("\n", " ")))
        figure(f"agreement_{step.name.replace(' ', '_').lower()}", 1 - len(differing) / len(texts))
        print(f"  theirs keeps {accepted}; differing: {differing}")

    def by_theirs() -> None:
        split_into_parts.cache_clear()
        for text in texts:
            for peer, _ in pairs[:3]:
                peer.filter(Theirs(text, ""))

    def by_ours() -> None:
        words.remembered = words.Parts()
        words.words.cache_clear()
        for document in documents:
            for _, step in pairs[:3]:
                step.apply(document)

    ours, peers = interleaved(arguments.rounds, by_ours, by_theirs)
    print(f"Gopher and C4, CPU seconds: ours {ours}, datatrove {peers}")
    figure("filters_documents_per_second", len(texts) / statistics.median(ours))
    figure("filters_ratio", statistics.median(b / a for a, b in zip(ours, peers)))


def duplicates(arguments: argparse.Namespace) -> None:
    """The truth set, by both methods; MB a CPU second beside the first of datatrove's four stages."""
    documents = [Document(row["id"], row["text"], "s") for row in rows("dedup_minhash/docs_1000.jsonl.gz")]
    order = {document.id: number for number, document in enumerate(documents)}
    truth = {tuple(sorted((order[p["a"]], order[p["b"]]))) for p in rows("dedup_minhash/truth_1000.jsonl.gz")}
    for name, step in (("minhash", NearDuplicates()), ("simhash", SimilarDuplicates())):
        found = set()
        for number, document in enumerate(documents):
            key = step.known_by(document)
            found |= {(other, number) for other in step.alike(key)}
            step.remember(key)
        figure(f"{name}_truth_recall", len(found & truth) / len(truth))
        figure(f"{name}_truth_false_pairs", len(found - truth))
    texts = english(arguments.megabytes)
    given = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    size = sum(len(text.encode()) for text in texts) / 1e6

    import xxhash
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.text import split_into_parts
    from loguru import logger

    logger.remove()
    peer = MinhashDedupSignature(output_folder=tempfile.gettempdir(), config=MinhashConfig())
    peer._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only

    def signatures() -> None:
        split_into_parts.cache_clear()
        for text in texts:
            peer.get_signature(peer.get_shingles(text))

    minhash, simhash, theirs = interleaved(
        arguments.rounds,
        lambda: list(NearDuplicates()(given)),
        lambda: list(SimilarDuplicates()(given)),
        signatures,
    )
    for name, times in (("minhash", minhash), ("simhash", simhash), ("datatrove_signatures", theirs)):
        figure(f"dedup_{name}_mb_per_second", size / statistics.median(times))
    figure("dedup_ratio", statistics.median(b / a for a, b in zip(minhash, theirs)))


def edited(text: str, rate: float, rng: random.Random) -> str:
    """Each character is, with probability `rate`, replaced, removed or followed by another of the text."""
    result = []
    for character in text:
        if rng.random() >= rate:
            result.append(character)
            continue
        kind = rng.randrange(3)
        result.append(("", rng.choice(text), character + rng.choice(text))[kind])
    return "".join(result)


def planted(arguments: argparse.Namespace) -> None:
    """Copies with character edits of 300 English articles and 300 Chinese paragraphs: recall / precision."""
    sets = {
        "en": [row["text"] for row in rows("dedup_minhash/docs_1000.jsonl.gz")][:300],
        "zh": [row["text"] for row in rows("zh_drcd_wiki/paragraphs.jsonl.gz")][:300],
    }
    settings = {
        "MinHash 0.8, 3 words (default)": lambda: NearDuplicates(),
        "MinHash 0.5, 3 words": lambda: NearDuplicates(0.5),
        "MinHash 0.5, 4 letters": lambda: NearDuplicates(0.5, 4, unit="character"),
        "MinHash 0.4, 3 letters": lambda: NearDuplicates(0.4, 3, unit="character"),
        "SimHash 6, 3 words (default)": lambda: SimilarDuplicates(),
        "SimHash 10, 1 word": lambda: SimilarDuplicates(10, 1),
        "SimHash 10, 3 letters": lambda: SimilarDuplicates(10, 3, unit="character"),
    }
    rates = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
    print("| method | language |", *(f"{rate:.0%} |" for rate in rates))
    print("|---|---|" + "---|" * len(rates))
    for name, make in settings.items():
        for language, texts in sets.items():
            originals = list(NearDuplicates()(Document(str(n), text, "s") for n, text in enumerate(texts)))
            step = make()
            for original in originals:
                step.remember(step.known_by(original))
            cells = []
            for rate in rates:
                rng = random.Random(1)
                found = [step.alike(step.known_by(d._replace(text=edited(d.text, rate, rng)))) for d in originals]
                right = sum(number in numbers for number, numbers in enumerate(found))
                wrong = sum(other != number for number, numbers in enumerate(found) for other in numbers)
                precision = f"{right / (right + wrong):.3f}" if right + wrong else "none"
                cells.append(f"{right / len(originals):.2f} / {precision} |")
            print(f"| {name} | {language} |", *cells, flush=True)


def scale(arguments: argparse.Namespace) -> None:
    """CPU seconds and memory up to a million synthetic documents of 40 words, one in ten a near copy."""

    def documents(count: int) -> Iterator[Document]:
        rng = random.Random(1)
        vocabulary = [f"w{number}" for number in range(50_000)]
        words: list[str] = []
        for number in range(count):
            if number % 10 or not words:
                words = rng.choices(vocabulary, k=40)
            else:
                words = [*words[:-1], rng.choice(vocabulary)]
            yield Document(str(number), " ".join(words), "s")

    for name, make in (("simhash", SimilarDuplicates), ("minhash", NearDuplicates)):
        for count in (10_000, 100_000, arguments.documents):
            spent = seconds(lambda count=count, make=make: sum(1 for _ in make()(documents(count))))
            figure(f"scale_{name}_{count}_microseconds_per_document", 1e6 * spent / count)
            figure(f"scale_{name}_{count}_peak_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    global DATA
    parts = {part.__name__: part for part in (filters, duplicates, planted, scale)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", default=["filters", "duplicates", "planted"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--documents", type=int, default=1_000_000)
    arguments = parser.parse_args()
    DATA = arguments.data
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    for part in arguments.parts:
        parts[part](arguments)


if __name__ == "__main__":
    main()
