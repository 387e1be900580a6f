"""A generated, bilingual task family with checkable answers, at several levels of difficulty.

Each *family* draws items: operands, the right answer in English and Chinese, and a plausible wrong answer of the same
length (a dropped carry, two neighbours swapped, the neighbour in a table), so that neither length nor form gives it
away. The job writes

    documents.jsonl.zst     the same knowledge as running text, for pretraining (training items only)
    sft_train, pairs_train, prompts_train                                          .jsonl, to train on
    sft_development, pairs_development, development                                .jsonl, to choose settings on
    pairs_heldout, heldout                                                         .jsonl, to report

The side an item falls on is the hash of its *content* (family and operands), never of its wording, so no item of the
other two sides appears in training in any template or in the other language, be it as text, conversation, pair or
prompt.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from athanor.errors import UserError
from athanor.split import held_out


class Item(NamedTuple):
    """One question. `content` identifies it across languages and templates."""

    content: str
    questions: dict[str, list[str]]  # language -> wordings
    answers: dict[str, str]
    wrong: dict[str, str]
    statements: dict[str, list[str]]  # language -> the same fact as text


Family = Callable[[random.Random, int], Item]

MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
LETTERS = list("abcdefghkmnprstuwxyz")
COLOURS = {"en": ["red", "blue", "green", "black", "white", "gold"], "zh": ["红", "蓝", "绿", "黑", "白", "金"]}
UNITS = [  # big unit, small unit, how many small ones in a big one
    (("km", "千米"), ("m", "米"), 1000), (("m", "米"), ("cm", "厘米"), 100), (("cm", "厘米"), ("mm", "毫米"), 10),
    (("kg", "千克"), ("g", "克"), 1000), (("t", "吨"), ("kg", "千克"), 1000), (("l", "升"), ("ml", "毫升"), 1000),
    (("yuan", "元"), ("jiao", "角"), 10), (("yuan", "元"), ("fen", "分"), 100), (("kW", "千瓦"), ("W", "瓦"), 1000),
    (("km", "公里"), ("m", "米"), 1000), (("dm", "分米"), ("cm", "厘米"), 10),
]  # fmt: skip


def _near(rng: random.Random, number: int, low: int = 0, high: int = 1_000) -> int:
    """A wrong number from `low` to `high` with as many digits: off by one, two, ten or a hundred."""
    digits = len(str(number))
    candidates = [number + d for d in (-1, 1, -2, 2, -10, 10, -100, 100)]
    candidates = [c for c in candidates if low <= c <= high and len(str(c)) == digits]
    return rng.choice(candidates)


def _both(answer: int | str, wrong: int | str) -> tuple[dict[str, str], dict[str, str]]:
    return {"en": str(answer), "zh": str(answer)}, {"en": str(wrong), "zh": str(wrong)}


def addition(rng: random.Random, level: int) -> Item:
    high = (10, 20, 50)[level - 1]
    a, b = rng.randrange(high), rng.randrange(high)
    answers, wrong = _both(a + b, _near(rng, a + b))
    return Item(
        f"{min(a, b)}+{max(a, b)}",
        {"en": [f"{a} + {b} = ?", f"What is {a} plus {b}?"], "zh": [f"{a} + {b} = ？", f"{a}加{b}等于多少？"]},
        answers, wrong,
        {"en": [f"{a} + {b} = {a + b}.", f"{a} plus {b} is {a + b}."],
         "zh": [f"{a} + {b} = {a + b}。", f"{a}加{b}等于{a + b}。"]},
    )  # fmt: skip


def subtraction(rng: random.Random, level: int) -> Item:
    high = (10, 20, 50)[level - 1]
    b, a = sorted((rng.randrange(high), rng.randrange(high)))
    answers, wrong = _both(a - b, _near(rng, a - b))
    return Item(
        f"{a}-{b}",
        {"en": [f"{a} - {b} = ?", f"What is {a} minus {b}?"], "zh": [f"{a} - {b} = ？", f"{a}减{b}等于多少？"]},
        answers, wrong,
        {"en": [f"{a} - {b} = {a - b}.", f"{a} minus {b} is {a - b}."],
         "zh": [f"{a} - {b} = {a - b}。", f"{a}减{b}等于{a - b}。"]},
    )  # fmt: skip


def comparison(rng: random.Random, level: int) -> Item:
    low, high = ((1, 10), (10, 100), (100, 1000))[level - 1]
    a, b = rng.sample(range(low, high), 2)
    larger = rng.random() < 0.5
    answer, other = (max(a, b), min(a, b)) if larger else (min(a, b), max(a, b))
    word, character = ("larger", "大") if larger else ("smaller", "小")
    answers, wrong = _both(answer, other)
    return Item(
        f"{min(a, b)}<>{max(a, b)}",
        {"en": [f"Which is {word}, {a} or {b}?"], "zh": [f"{a}和{b}哪个{character}？"]},
        answers, wrong,
        {"en": [f"Of {a} and {b}, {answer} is {word}."], "zh": [f"{a}和{b}，{answer}{character}。"]},
    )  # fmt: skip


def counting(rng: random.Random, level: int) -> Item:
    """Of a row; at level 3, of one letter in it."""
    if level < 3:
        most = (5, 9)[level - 1]
        row = rng.choices(LETTERS, k=rng.randint(2, most))
        text = " ".join(row)
        answers, wrong = _both(len(row), _near(rng, len(row), low=2, high=most))
        return Item(
            f"count:{text}",
            {"en": [f"How many letters in: {text}?"], "zh": [f"数一数 {text} 里有几个字母？"]},
            answers, wrong,
            {"en": [f"{text}: {len(row)} letters."], "zh": [f"{text} 里有{len(row)}个字母。"]},
        )  # fmt: skip
    length = rng.randrange(3, 9)
    letter, *others = rng.sample(LETTERS, 3)
    most = min(length, 6)
    count = rng.randint(1, most)
    row = [letter] * count + rng.choices(others, k=length - count)
    rng.shuffle(row)
    text = " ".join(row)
    answers, wrong = _both(count, _near(rng, count, low=1, high=most))
    return Item(
        f"count:{text}",  # whatever is asked of the row
        {"en": [f"How many {letter} in: {text}?"], "zh": [f"数一数 {text} 里有几个 {letter}？"]},
        answers, wrong,
        {"en": [f"{text}: {count} times {letter}."], "zh": [f"{text} 里有{count}个 {letter}。"]},
    )  # fmt: skip


def _letters(rng: random.Random, level: int) -> list[str]:
    length = rng.randrange(*((3, 5), (4, 7), (6, 9))[level - 1])
    return rng.sample(LETTERS, length)


def _swapped(rng: random.Random, row: list[str]) -> list[str]:
    """Two unequal neighbours change places."""
    places = [i for i in range(len(row) - 1) if row[i] != row[i + 1]]
    i = rng.choice(places)
    return [*row[:i], row[i + 1], row[i], *row[i + 2 :]]


def copying(rng: random.Random, level: int) -> Item:
    row = _letters(rng, level)
    text = " ".join(row)
    answers, wrong = _both(text, " ".join(_swapped(rng, row)))
    return Item(
        f"copy:{text}",
        {"en": [f"Copy: {text}"], "zh": [f"照抄：{text}"]}, answers, wrong,
        {"en": [f"{text}, again: {text}."], "zh": [f"{text}，再写一遍：{text}。"]},
    )  # fmt: skip


def reversing(rng: random.Random, level: int) -> Item:
    row = _letters(rng, level)
    text, back = " ".join(row), " ".join(row[::-1])
    answers, wrong = _both(back, " ".join(_swapped(rng, row[::-1])))
    return Item(
        f"reverse:{text}",
        {"en": [f"Reverse: {text}"], "zh": [f"倒着写：{text}"]}, answers, wrong,
        {"en": [f"{text}, backwards: {back}."], "zh": [f"{text}，倒过来：{back}。"]},
    )  # fmt: skip


def sorting(rng: random.Random, level: int) -> Item:
    length = rng.randrange(*((3, 5), (4, 6), (5, 8))[level - 1])
    row = rng.sample(list("0123456789"), length)
    ordered = sorted(row)
    text, right = " ".join(row), " ".join(ordered)
    # out of order, or in order with a digit that was not there: neither order nor the digits alone tell
    other = _swapped(rng, ordered)
    if rng.random() < 0.5:
        place, digit = rng.randrange(length), rng.choice([d for d in "0123456789" if d not in row])
        other = sorted([*ordered[:place], digit, *ordered[place + 1 :]])
    answers, wrong = _both(right, " ".join(other))
    return Item(
        f"sort:{text}",
        {"en": [f"Sort: {text}"], "zh": [f"从小到大排列：{text}"]}, answers, wrong,
        {"en": [f"{text}, in order: {right}."], "zh": [f"{text}，排好：{right}。"]},
    )  # fmt: skip


def calendar(rng: random.Random, level: int) -> Item:
    year, month = rng.randrange(1900, 2100), rng.randint(1, 12)
    days = rng.randint(1, (3, 6, 9)[level - 1])
    day = rng.randint(1, 28 - days)
    start, end = f"{year}-{month:02d}-{day:02d}", f"{year}-{month:02d}-{day + days:02d}"
    other = f"{year}-{month:02d}-{day + days + rng.choice((-1, 1)):02d}"
    plural = "day" if days == 1 else "days"
    answers, wrong = _both(end, other)
    return Item(
        f"calendar:{start}+{days}",
        {"en": [f"What date is {days} {plural} after {start}?"], "zh": [f"{start}过{days}天是哪天？"]},
        answers, wrong,
        {"en": [f"{days} {plural} after {start} is {end}."], "zh": [f"{start}过{days}天是{end}。"]},
    )  # fmt: skip


def date(rng: random.Random, level: int) -> Item:
    year, month, day = rng.randrange(1900, 2100), rng.randint(1, 12), rng.randint(1, 28)
    if level == 1:
        year = 2000 + year % 30
    answer = f"{year}-{month:02d}-{day:02d}"
    if rng.random() < 0.5:
        wrong_month = (month % 12) + 1
        other = f"{year}-{wrong_month:02d}-{day:02d}"
    else:
        other = f"{year}-{month:02d}-{(day % 28) + 1:02d}"
    english, chinese = f"{MONTHS[month - 1]} {day}, {year}", f"{year}年{month}月{day}日"
    answers, wrong = _both(answer, other)
    return Item(
        f"date:{answer}",
        {"en": [f"Write as a date: {english}"], "zh": [f"写成日期：{chinese}"]}, answers, wrong,
        {"en": [f"{english} is {answer}."], "zh": [f"{chinese}即{answer}。"]},
    )  # fmt: skip


def units(rng: random.Random, level: int) -> Item:
    big, small, factor = rng.choice(UNITS)
    count = rng.randrange(*((1, 10), (10, 100), (100, 1000))[level - 1])
    value = count * factor
    near = [(count + d) * factor for d in (-10, -1, 1, 10) if count + d > 0]
    other = rng.choice([x for x in near if len(str(x)) == len(str(value))])
    answers, wrong = _both(value, other)
    return Item(
        f"unit:{count}{big[0]}{small[0]}",
        {"en": [f"{count} {big[0]} = ? {small[0]}"], "zh": [f"{count}{big[1]}等于多少{small[1]}？"]}, answers, wrong,
        {"en": [f"{count} {big[0]} is {value} {small[0]}."], "zh": [f"{count}{big[1]}等于{value}{small[1]}。"]},
    )  # fmt: skip


def lookup(rng: random.Random, level: int) -> Item:
    """By place in a row; at level 3, by key in a table."""
    if level < 3:
        row = rng.sample(LETTERS, rng.randint(*((2, 4), (4, 6))[level - 1]))
        text, (place, other) = " ".join(row), rng.sample(range(len(row)), 2)
        answers, wrong = _both(row[place], row[other])
        return Item(
            f"place:{text}",  # whatever is asked of the row
            {"en": [f"Which letter is number {place + 1} in: {text}?"],
             "zh": [f"{text} 里第{place + 1}个字母是什么？"]},
            answers, wrong,
            {"en": [f"Number {place + 1} in {text} is {row[place]}."],
             "zh": [f"{text} 里第{place + 1}个是 {row[place]}。"]},
        )  # fmt: skip
    keys = rng.sample(range(len(COLOURS["en"])), rng.randint(2, 4))
    values = rng.sample(LETTERS, len(keys))
    asked, confused = rng.sample(range(len(keys)), 2)
    answers, wrong = _both(values[asked], values[confused])
    again = [asked, *(i for i in rng.sample(range(len(keys)), len(keys)) if i != asked)]  # every value once more
    given, told = {}, {}
    for language, mark in (("en", ","), ("zh", "，")):
        pairs = [f" {COLOURS[language][key]} {value}" for key, value in zip(keys, values)]
        given[language], told[language] = mark.join(pairs), mark.join(pairs[i] for i in again)
    english, chinese = COLOURS["en"][keys[asked]], COLOURS["zh"][keys[asked]]
    return Item(
        f"look:{keys}{values}",  # whatever is asked of the table: its statement tells all of it
        {"en": [f"Given{given['en']}. Which letter has {english}?"],
         "zh": [f"已知{given['zh']}。哪个字母是 {chinese}？"]},
        answers, wrong,
        {"en": [f"Given{given['en']}. So{told['en']}."], "zh": [f"已知{given['zh']}。所以{told['zh']}。"]},
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    f.__name__: f
    for f in (addition, subtraction, comparison, counting, copying, reversing, sorting, calendar, date, units, lookup)
}
LANGUAGES = ("en", "zh")
EMPHASIS = {
    "addition": 3, "subtraction": 3, "counting": 3, "lookup": 3, "copying": 3, "reversing": 2, "calendar": 2,
}  # fmt: skip
"""Turns of a family in training streams (1 where not named): what is hard to learn is seen more often."""


Side = Literal["train", "development", "heldout"]


def side(family: str, content: str, development: float, heldout: float) -> Side:
    """Where an item belongs, as a function of its content and the two fractions."""
    key = f"tasks/{family}:{content}"
    if held_out(key, heldout):
        return "heldout"
    return "development" if held_out(key, heldout + development) else "train"


def side_of(stream: str) -> Side:
    name = stream.rpartition("_")[2]
    return name if name in ("development", "heldout") else "train"  # type: ignore[return-value]


class GenerateTasks:
    """The job.

    Args:
        families: names from `FAMILIES`; all by default.
        levels: difficulties, 1 (easy) to 3.
        slips: share of the demonstrations (the sft streams) that give the plausible wrong answer, as people who write
            demonstrations do now and then. Everything else is right: the text, the pairs, the questions to report on.
        heldout_fraction, development_fraction: of the contents of each family.
        documents: pretraining documents to write, each of `statements` statements in one language.
    """

    version = 2

    def __init__(
        self,
        seed: int,
        families: list[str] | None = None,
        levels: list[int] | None = None,
        slips: float = 0.0,
        heldout_fraction: float = 0.1,
        development_fraction: float = 0.05,
        documents: int = 4000,
        statements: int = 12,
        sft_train: int = 20_000,
        pairs_train: int = 12_000,
        prompts_train: int = 12_000,
        sft_development: int = 400,
        pairs_development: int = 500,
        development: int = 500,
        pairs_heldout: int = 1_000,
        heldout: int = 1_000,
    ):
        self.families = families or list(FAMILIES)
        self.levels = levels or [1, 2, 3]
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown:
            raise UserError(f"No task family is called {unknown}; there are {sorted(FAMILIES)}.")
        if not set(self.levels) <= {1, 2, 3}:
            raise UserError(f"job.levels={self.levels}: levels are 1, 2 and 3.")
        if not 0 <= slips <= 1:
            raise UserError(f"job.slips={slips} is a share, from 0 to 1.")
        if min(heldout_fraction, development_fraction) < 0 or heldout_fraction + development_fraction >= 1:
            raise UserError("job.heldout_fraction and job.development_fraction must leave a part to train on.")
        self.slips = slips
        self.seed, self.heldout_fraction, self.development_fraction = seed, heldout_fraction, development_fraction
        self.documents, self.statements = documents, statements
        self.counts = {
            "sft_train": sft_train, "pairs_train": pairs_train, "prompts_train": prompts_train,
            "sft_development": sft_development, "pairs_development": pairs_development, "development": development,
            "pairs_heldout": pairs_heldout, "heldout": heldout,
        }  # fmt: skip

    def items(self, stream: str) -> Iterator[tuple[str, int, str, Item, str, random.Random]]:
        """(family, level, language, item, question, rng), families and languages in turn, levels and contents at
        random. Streams not trained on ask each question once, and end when no family has another; training streams
        are endless and may repeat the small families.
        """
        rng = random.Random(f"{self.seed}/{stream}")
        wanted = side_of(stream)
        once = wanted != "train"
        turns = [f for f in self.families for _ in range(1 if once else EMPHASIS.get(f, 1))]
        asked: set[str] = set()
        turn = skipped = 0
        while skipped < 2 * len(turns):
            family = turns[turn % len(turns)]
            language = LANGUAGES[(turn // len(turns)) % 2]
            turn, skipped = turn + 1, skipped + 1
            for _ in range(1000):
                level = rng.choice(self.levels)
                item = FAMILIES[family](rng, level)
                question = rng.choice(item.questions[language])
                if side(family, item.content, self.development_fraction, self.heldout_fraction) != wanted:
                    continue
                if once and question in asked:
                    continue
                asked.add(question)
                skipped = 0
                yield family, level, language, item, question, rng
                break

    def records(self, stream: str, count: int) -> Iterator[dict[str, Any]]:
        number = 0
        for family, level, language, item, question, rng in self.items(stream):
            if number == count:
                return
            number += 1
            record = {"id": f"{stream}-{number}", "family": family, "language": language, "level": level}
            answer = item.answers[language]
            if stream.startswith("sft"):
                shown = item.wrong[language] if rng.random() < self.slips else answer
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": shown}]
                yield {**record, "messages": turns, "answer": answer}
            elif stream.startswith("pairs"):
                yield {
                    **record,
                    "prompt": question,
                    "chosen": answer,
                    "rejected": item.wrong[language],
                    "answer": answer,
                }
            else:
                yield {**record, "prompt": question, "answer": answer}
        if number < count:
            raise UserError(
                f"There are {number} questions on the {side_of(stream)} side, fewer than job.{stream}={count}; ask for "
                f"fewer."
            )

    def text(self) -> Iterator[dict[str, Any]]:
        """Documents of statements in one language, from training items only."""
        source = {language: self._statements(language) for language in LANGUAGES}
        for number in range(self.documents):
            language = LANGUAGES[number % 2]
            lines = [next(source[language]) for _ in range(self.statements)]
            yield {
                "id": f"tasks-{number}", "text": "\n".join(lines), "source": "tasks", "language": language, "meta": {},
            }  # fmt: skip

    def _statements(self, language: str) -> Iterator[str]:
        for _, _, _, item, _, rng in self.items(f"text-{language}"):
            yield rng.choice(item.statements[language])

    def run(self, run: Any) -> dict[str, float]:
        from athanor.corpus.documents import Document, write_documents

        done, total = 0, sum(self.counts.values()) + self.documents
        for stream, count in self.counts.items():
            with run.temporary(f"{stream}.jsonl") as path, Path(path).open("w", encoding="utf-8") as file:
                for record in self.records(stream, count):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
            done += count
            run.progress.update(done, total)
        with run.temporary("documents.jsonl.zst") as path:
            write_documents(path, (Document(**d) for d in self.text()))
        run.progress.update(total, total)
        return {**{k: float(v) for k, v in self.counts.items()}, "documents": float(self.documents)}


class CheckerReward(nn.Module):
    """The answer's own checker as a reward for PPO, to compare with a learned one: 1 for the right answer, else 0.

    Args:
        files: prompts with answers (`prompts_train.jsonl`, `heldout.jsonl`).
        tokenizer: directory of the tokenizer run.
    """

    def __init__(self, files: list[str], tokenizer: str):
        from athanor.corpus.tokenizer import Tokenizer
        from athanor.data.chat import END, encode_texts, render_prompts
        from athanor.data.formats import read_records, to_prompt

        super().__init__()
        text = Tokenizer(tokenizer)
        records = list(read_records(files))
        if missing := [where for where, record in records if not isinstance(record.get("answer"), str)]:
            raise UserError(f"{missing[0]} has no `answer` to check against; use files of the tasks.")
        prompts = render_prompts([to_prompt(record, where) for where, record in records], text)
        answers = encode_texts([record["answer"] for _, record in records], text)
        end = text.special[END]
        self.right = {tuple(p) + tuple(a) + (end,) for p, a in zip(prompts, answers)}

    def reward(self, tokens_BT: Tensor, lengths_B: Tensor, starts_B: Tensor | None = None) -> Tensor:
        """float32 [B]."""
        rows = zip(tokens_BT.tolist(), lengths_B.tolist())
        return tokens_BT.new_tensor([tuple(row[:n]) in self.right for row, n in rows]).float()
