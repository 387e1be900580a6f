"""Cleaning beside its peers, on the shared data: what is found, the same decisions, and how much faster.

    pip install -e '.[peers]'        # or --peers FOLDER, made by pip install --target FOLDER ...
    python benchmarks/corpus.py [--data DIRECTORY] [--rounds 3] [--megabytes 4] [PART ...]

Parts: extraction, filters, duplicates, planted, pipeline, reading; and scale, up to a million synthetic documents, if
named.
Sides take turns in one process and are measured in CPU seconds; a ratio is the median over the rounds. Each round has
documents of its own and the first is not counted, so that both sides have read other text, and neither this one.
"""

import argparse
import base64
import gc
import gzip
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

from athanor.corpus.c4 import C4
from athanor.corpus.deduplicate import NearDuplicates, SimilarDuplicates
from athanor.corpus.documents import FILENAME, Document, read_documents, write_documents
from athanor.corpus.extract import ExtractHtml, Method, decode_html
from athanor.corpus.files import SURROGATE
from athanor.corpus.fineweb import FineWeb
from athanor.corpus.gopher import GopherQuality, GopherRepetition
from athanor.corpus.language import detect_language

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
    """Of CPU time. What either side holds from before is no longer looked through by the garbage collector: else a full
    collection, of the models of both, falls to whoever is at work.
    """
    gc.collect()
    gc.freeze()
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(parts: list[list], *sides: Callable[[list], object]) -> list[list[float]]:
    """CPU seconds of each side for each part but the first; whoever begins alternates."""
    times = []
    for number, part in enumerate(parts):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        spent = {side: seconds(lambda side=side, part=part: sides[side](part)) for side in order}
        times.append([spent[side] for side in range(len(sides))])
    return [list(column) for column in zip(*times[1:])]


def sliced(items: list, rounds: int) -> list[list]:
    return [items[start :: rounds + 1] for start in range(rounds + 1)]


def ratio(ours: list[float], theirs: list[float]) -> float:
    ratios = [b / a for a, b in zip(ours, theirs)]
    print(f"  CPU seconds: ours {[round(t, 3) for t in ours]}, theirs {[round(t, 3) for t in theirs]}")
    print(f"  ratio of each round: {[round(r, 1) for r in ratios]}")
    return statistics.median(ratios)


def quiet() -> None:
    import logging

    from loguru import logger

    logger.remove()
    logging.disable(logging.CRITICAL)


def shingles(text: str) -> Counter:
    """Runs of four words, as the benchmark of the annotated pages counts them."""
    words = re.findall(r"\w+", text or "")
    return Counter(tuple(words[start : start + 4]) for start in range(max(1, len(words) - 3)) if words)


def f1(found: list[str | None], truths: list[str]) -> tuple[float, float, float]:
    """F1, precision and recall, the latter two as means over the pages that have such runs at all."""
    precisions, recalls = [], []
    for text, truth in zip(found, truths):
        ours, right = shingles(text or ""), shingles(truth)
        common = (ours & right).total()
        if ours:
            precisions.append(common / ours.total())
        if right:
            recalls.append(common / right.total())
    precision, recall = statistics.mean(precisions), statistics.mean(recalls)
    return 2 * precision * recall / (precision + recall), precision, recall


def pages(name: str, truth: str) -> list[tuple[str, str]]:
    """(markup, the article in it)"""
    found = []
    for row in rows(f"{name}/pages.jsonl.gz"):
        markup = row.get("html")
        found.append((decode_html(base64.b64decode(row["html_b64"]))[0] if markup is None else markup, row[truth]))
    return found


def extraction(arguments: argparse.Namespace) -> None:
    """Each method on the pages that people annotated, and on Readability's test pages, whose truth a machine made."""
    methods: dict[str, Callable[[str], str | None]] = {}
    for method in get_args(Method):
        step = ExtractHtml(method, metadata=False)
        methods[method] = lambda markup, step=step: getattr(
            step.apply(Document("", markup, "", meta={"format": "html"})), "text", ""
        )
    try:
        from bs4 import BeautifulSoup

        methods["BeautifulSoup's text"] = lambda markup: BeautifulSoup(markup, "lxml").get_text(" ")
    except ImportError:
        print("  BeautifulSoup is not there: pip install beautifulsoup4")
    quiet()
    for name, truth in (("html_article_extraction", "article_body"), ("html_readability", "expected_text")):
        found = pages(name, truth)
        texts: dict[str, list[str | None]] = {method: [] for method in methods}
        spent = dict.fromkeys(methods, 0.0)
        for markup, _ in found:
            for method, extract in methods.items():
                start = time.process_time()
                texts[method].append(extract(markup))
                spent[method] += time.process_time() - start
        print(
            f"{name}: {len(found)} pages of {sum(len(m) for m, _ in found) / len(found) / 1e3:.0f} thousand characters"
        )
        print("| method | F1 | precision | recall | pages a CPU second |\n|---|---|---|---|---|")
        for method in methods:
            score = f1(texts[method], [truth for _, truth in found])
            print(f"| {method} |", *(f"{value:.3f} |" for value in score), f"{len(found) / spent[method]:.0f} |")
            if name == "html_article_extraction" and method == "density":
                figure("extraction_f1", score[0])
                figure("extraction_pages_per_second", len(found) / spent[method])


def filters(arguments: argparse.Namespace) -> None:
    from datatrove.data import Document as Theirs
    from datatrove.pipeline import filters as theirs

    quiet()
    texts = english(arguments.megabytes * (arguments.rounds + 1))
    pairs = [
        (theirs.GopherQualityFilter(), GopherQuality()),
        (theirs.GopherRepetitionFilter(), GopherRepetition()),
        (theirs.C4QualityFilter(), C4()),
        (theirs.FineWebQualityFilter(), FineWeb()),
    ]
    print(f"{len(texts)} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB")
    verdicts: dict[str, list] = {}

    def by_theirs(part: list[str]) -> None:
        for text in part:
            verdicts[text] = [peer.filter(Theirs(text, "")) is True for peer, _ in pairs[:3]]

    def by_ours(part: list[str]) -> None:
        for text in part:
            document = Document("", text, "s")
            for _, step in pairs[:3]:
                step.apply(document)

    ours, peers = interleaved(sliced(texts, arguments.rounds), by_ours, by_theirs)
    figure("filters_documents_per_second", (len(texts) - len(texts[:: arguments.rounds + 1])) / sum(ours))
    figure("filters_ratio", ratio(ours, peers))
    decisions = []
    for text in texts:
        document = Document("", text, "s")
        own = [step.apply(document) for _, step in pairs]
        decisions.append((own, [*verdicts[text], pairs[3][0].filter(Theirs(text, "")) is True], text))
    for position, (_, step) in enumerate(pairs):
        agreement(step.name, [(own[position], kept[position], text) for own, kept, text in decisions])
    together = [
        (next((o for o in own[:3] if isinstance(o, str)), own[2]), all(kept[:3]), text) for own, kept, text in decisions
    ]
    agreement("gopher and c4", together)


def agreement(name: str, decisions: list[tuple[Document | str, bool, str]]) -> None:
    differing = [(own, text) for own, kept, text in decisions if isinstance(own, str) == kept]
    figure(f"agreement_{name.replace(' ', '_').lower()}", 1 - len(differing) / len(decisions))
    print(f"  theirs keeps {sum(kept for _, kept, _ in decisions)} of {len(decisions)}")
    for own, text in differing:
        print(f"  differing: ours {own if isinstance(own, str) else 'keeps'}: {text[:70]!r}")


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

    import xxhash
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    quiet()
    texts = english(arguments.megabytes * (arguments.rounds + 1))
    size = sum(len(text.encode()) for text in texts) / 1e6 * arguments.rounds / (arguments.rounds + 1)
    peer = MinhashDedupSignature(output_folder=tempfile.gettempdir(), config=MinhashConfig())
    peer._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only

    def signatures(part: list[str]) -> None:
        for text in part:
            peer.get_signature(peer.get_shingles(text))

    def by(step: type) -> Callable[[list[str]], object]:
        return lambda part: list(step()(Document(str(number), text, "s") for number, text in enumerate(part)))

    minhash, simhash, theirs = interleaved(
        sliced(texts, arguments.rounds), by(NearDuplicates), by(SimilarDuplicates), signatures
    )
    for name, times in (("minhash", minhash), ("simhash", simhash), ("datatrove_signatures", theirs)):
        figure(f"dedup_{name}_mb_per_second", size / sum(times))
    figure("dedup_simhash_ratio", ratio(simhash, theirs))
    figure("dedup_ratio", ratio(minhash, theirs))


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


class Context:
    """The part of a run that jobs of the corpus use."""

    class Progress:
        def stage(self, title: str) -> None:
            pass

        def update(self, done: float, total: float, **fields: object) -> None:
            pass

    def __init__(self, directory: Path):
        directory.mkdir()
        self.directory, self.progress = directory, self.Progress()

    def path(self, relative: str, verify: bool = True) -> Path:
        return self.directory / relative

    @contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        yield self.directory / name


def pipeline(arguments: argparse.Namespace) -> None:
    """Pages to shards: extraction, filters of Gopher, C4 and FineWeb, MinHash, tokens; each side by its own defaults.

    datatrove's steps run in this process, without its executor and its sandbox for extraction, and hand documents on in
    memory; ours are two jobs as `athanor prepare` runs them, with documents.jsonl.zst between them.
    """
    import tokenizers
    import xxhash
    from datatrove.data import Document as Theirs
    from datatrove.pipeline import dedup
    from datatrove.pipeline import filters as theirs
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    import athanor.runs.store
    from athanor.corpus.prepare import PrepareDocuments
    from athanor.corpus.shards import WriteShards
    from athanor.corpus.sources import JsonLines
    from athanor.corpus.tokenizer import TrainTokenizer

    quiet()
    markups = [markup for markup, _ in pages("html_article_extraction", "article_body")]
    markups += [markup for markup, _ in pages("html_readability", "expected_text")]
    random.Random(1).shuffle(markups)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        numbers = iter(range(1000))
        learnt = Context(root / "tokenizer")
        texts = english(2.0)
        (root / "texts").mkdir()
        write_documents(root / "texts" / FILENAME, (Document(str(n), text, "s", "en") for n, text in enumerate(texts)))

        class Run:
            def __init__(self, directory: str):
                self.directory = Path(directory)

            path = Context.path

        athanor.runs.store.open_run = Run
        TrainTokenizer(str(root / "texts"), vocabulary_size=8192).run(learnt)
        peer = tokenizers.Tokenizer(tokenizers.models.BPE())
        peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=8192,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        peer.train_from_iterator(texts, trainer)
        peer.save(str(root / "tokenizer.json"))
        counts: dict[str, list[int]] = {"ours": [], "theirs": []}

        def by_ours(source: Path) -> None:
            number = next(numbers)
            steps = [ExtractHtml(), GopherRepetition(), GopherQuality(), C4(), FineWeb(), NearDuplicates()]
            prepared, written = Context(root / f"{number}-documents"), Context(root / f"{number}-shards")
            PrepareDocuments([JsonLines(str(source), "pages", html_key="text")], steps).run(prepared)
            WriteShards(str(prepared.directory), str(learnt.directory), validation_fraction=0).run(written)
            counts["ours"].append(sum(1 for _ in read_documents(prepared.directory / FILENAME)))

        extractor = Trafilatura()
        chain = [theirs.GopherRepetitionFilter(), theirs.GopherQualityFilter(), theirs.C4QualityFilter()]
        chain.append(theirs.FineWebQualityFilter())

        def by_theirs(source: Path) -> None:
            place = root / f"{next(numbers)}-theirs"
            read = JsonlReader(str(source.parent)).run(None, 0, 1)
            documents = (Theirs(extractor.extract(page.text) or "", page.id) for page in read)
            for step in chain:
                documents = step.run(documents, 0, 1)
            kept = list(documents)
            sign = dedup.MinhashDedupSignature(str(place / "signatures"))
            sign._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only
            sign.run(iter(kept), 0, 1)
            for bucket in range(dedup.MinhashConfig().num_buckets):
                dedup.MinhashDedupBuckets(str(place / "signatures"), str(place / "buckets")).run(
                    None, bucket, dedup.MinhashConfig().num_buckets
                )
            dedup.MinhashDedupCluster(str(place / "buckets"), str(place / "remove")).run(None, 0, 1)
            left = dedup.MinhashDedupFilter(str(place / "remove")).run(iter(kept), 0, 1)
            counts["theirs"].append(0)

            def counted() -> Iterator:
                for document in left:
                    counts["theirs"][-1] += 1
                    yield document

            DocumentTokenizer(str(place / "tokens"), str(root / "tokenizer.json"), eos_token="<|endoftext|>").run(
                counted(), 0, 1
            )

        for text in texts:  # each side has seen words before, as a worker has after its first pages
            GopherQuality().apply(Document("", text, "s"))
            chain[1].filter(Theirs(text, ""))
        parts = []
        for number, part in enumerate(sliced(markups, arguments.rounds)):
            (root / f"pages{number}").mkdir()
            parts.append(root / f"pages{number}" / "pages.jsonl")
            parts[-1].write_text("".join(json.dumps({"text": SURROGATE.sub("?", markup)}) + "\n" for markup in part))
        ours, peers = interleaved(parts, by_ours, by_theirs)
        print(f"  {len(markups)} pages; documents kept in each round: {counts}")
        left = len(markups) - len(sliced(markups, arguments.rounds)[0])
        figure("pipeline_pages_per_second", left / sum(ours))
        figure("pipeline_ratio", ratio(ours, peers))


def reading(arguments: argparse.Namespace) -> None:
    """Tokens of mapped shards as the batches of a training, rows in a random order, with documents and positions."""
    import numpy as np

    from athanor.data.pretraining import PackedRows

    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        count = 100_000_000
        rng.integers(0, 32_000, count, dtype=np.uint16).tofile(Path(folder) / "train.bin")
        tokens = np.memmap(Path(folder) / "train.bin", dtype="<u2", mode="r")
        ends = rng.integers(50, 1500, count // 500).cumsum()
        shards = SimpleNamespace(tokens=tokens, offsets=np.concatenate([[0], ends[ends < count], [count]]))
        for length, size in ((256, 64), (2048, 16), (8192, 8)):
            rows = PackedRows(shards, length)
            batches = rng.permutation(len(rows))[: 20_000_000 // length // size * size].reshape(-1, size)
            spent = [
                seconds(lambda rows=rows, batches=batches: [None for each in batches if rows.batch(each, each, 1)])
                for _ in range(arguments.rounds)
            ]
            figure(f"reading_rows_of_{length}_tokens_per_second", batches.size * length / statistics.median(spent))


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

    for name, make in (("minhash", NearDuplicates), ("simhash", SimilarDuplicates)):
        for count in (10_000, 100_000, arguments.documents):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            spent = seconds(lambda count=count, make=make: sum(1 for _ in make()(documents(count))))
            peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
            figure(f"scale_{name}_{count}_microseconds_per_document", 1e6 * spent / count)
            figure(f"scale_{name}_{count}_peak_gib", int(peak.split()[1]) / 2**20)


def main() -> None:
    global DATA
    parts = {part.__name__: part for part in (extraction, filters, duplicates, planted, pipeline, reading, scale)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", default=[name for name in parts if name != "scale"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peers", type=Path, help="folder of `pip install --target` with the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=1.0, help="of text in each round")
    parser.add_argument("--documents", type=int, default=1_000_000)
    arguments = parser.parse_args()
    DATA = arguments.data
    if arguments.peers:
        sys.path.append(str(arguments.peers.resolve()))
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    for part in arguments.parts:
        parts[part](arguments)


if __name__ == "__main__":
    main()
