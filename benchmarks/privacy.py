"""How surely personal data is found and all else left: generated texts, adversarially formatted, in two languages.

    python benchmarks/privacy.py [--texts 20000] [--seed 1] [--faker]

Prints recall and precision of exact spans with their kinds, by kind and language, and `FIGURE pii_precision`,
`FIGURE pii_recall`, `FIGURE pii_megabytes_per_second` (CPU time). Half of the texts hold one to three data in the
spellings people give them, the other half look-alikes: what passes a checksum and is no one's, what nearly passes one,
codes, dates, versions. `--faker` measures recall on values of the Faker library too, which knows nothing of this file.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from athanor.corpus.privacy import Finding, bank_card, find, luhn, resident_id


class Text(NamedTuple):
    """kind and span of every datum in it; of a look-alike none."""

    text: str
    data: list[Finding]
    language: str


def numbers(rng: random.Random, n: int) -> str:
    return "".join(rng.choices("0123456789", k=n))


def with_check(body: str, valid) -> str:
    return next(body + digit for digit in "0123456789X" if valid(body + digit))


def grouped(number: str, sizes: tuple[int, ...], joint: str) -> str:
    parts, start = [], 0
    for size in sizes:
        parts.append(number[start : start + size])
        start += size
    return joint.join([*parts, number[start:]] if number[start:] else parts)


def full_width(text: str) -> str:
    return text.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})


def with_luhn(body: str) -> str:
    return with_check(body, lambda number: number.isdigit() and luhn(number))


def identity(rng: random.Random) -> str:
    number, of, pick = partial(numbers, rng), rng.randrange, rng.choice
    region = pick(["110105", "310104", "440305", "510107", "650102", "120103", "320583", "431028", "540121"])
    born = f"{of(1930, 2020)}{of(1, 13):02}{of(1, 29):02}"
    return with_check(region + born + number(3), resident_id)


CITIES = [
    ("北京市", "朝阳区"),
    ("上海市", "浦东新区"),
    ("广东省深圳市", "南山区"),
    ("浙江省杭州市", "西湖区"),
    ("四川省成都市", "武侯区"),
    ("湖北武汉", "洪山区"),
    ("江苏省苏州市", "昆山市"),
    ("陕西省西安市", "雁塔区"),
]
STREETS = ["中山路", "人民南路", "建国门外大街", "解放大道", "文一西路", "张江路", "和平街", "学院路", "珠江东路"]


def address_zh(rng: random.Random) -> str:
    of, pick = rng.randrange, rng.choice
    city, district = pick(CITIES)
    place = pick([f"{city}{district}", f"{city}{district}", district]) + pick(STREETS)
    house = f"{of(1, 1999)}号" if rng.random() < 0.8 else f"{of(1, 999)}弄{of(1, 60)}号"
    return (
        place
        + house
        + pick(
            [
                "",
                "",
                f"{of(1, 30)}号楼{of(1, 5)}单元{of(101, 2800)}室",
                f"华星时代广场{pick('ABC')}座{of(1, 33)}层",
                f"锦绣花园{of(1, 40)}栋{of(101, 999)}",
                f"{of(101, 2800)}室",
            ]
        ).removesuffix("栋")
    )


def address_en(rng: random.Random) -> str:
    number, of, pick = partial(numbers, rng), rng.randrange, rng.choice
    name = pick(
        ["Main", "Oak", "Elm", "Maple", "N. Lincoln", "Martin Luther King", "Fifth", "42nd", "St. James", "Old Mill"]
    )
    street = f"{of(1, 9999)} {name} {pick(['Street', 'St.', 'Avenue', 'Ave', 'Road', 'Rd', 'Blvd', 'Lane', 'Drive'])}"
    if street.split()[0].isdigit() and 1500 <= int(street.split()[0]) < 2100:
        street = f"1{street}"  # a year before a street alone is no address here
    unit = pick(
        [
            "",
            "",
            f", Apt {of(1, 99)}{pick('ABC')}",
            f" Suite {of(100, 999)}",
            f", #{of(1, 99)}",
        ]
    )
    town = pick(
        [
            "",
            f", Springfield, IL {number(5)}",
            f", New York, NY {number(5)}-{number(4)}",
            f", San Jose, CA {number(5)}",
            f"\nPortland, OR {number(5)}",
        ]
    )
    street_uk = f"{pick(['High', 'Church', 'Station'])} {pick(['Street', 'Road', 'Lane'])}"
    town_uk = pick(["London SW1A 2AA", "Leeds LS1 4AP", "Oxford OX1 3PW"])
    british = f"{of(1, 300)}{pick(['', 'A', 'b'])} {street_uk}, {town_uk}"
    return pick(
        [
            street + unit + town,
            street + unit + town,
            british,
            f"P.O. Box {of(1, 9999)}, Austin, TX {number(5)}",
        ]
    )


def personal(rng: random.Random, language: str) -> tuple[str, str]:
    """(text, kind): a datum, in one of the spellings in which people give it."""
    number, of, pick = partial(numbers, rng), rng.randrange, rng.choice
    joint = pick(["", " ", "-", "."])
    name = pick(["li.wei", "anna_b", "j-smith+news", "wangxiaoming88", "x", "zhang.san2001", "O.Brien", "1234567"])
    domain = pick(
        ["example.com", "mail.pku.edu.cn", "firm-a.co.uk", "163.com", "qq.com", "sub.domain.museum", "gmail.com"]
    )
    dotted, mobile = (
        domain.replace(".", " dot "),
        pick(["138", "159", "186", "199", "147", "170"]) + number(8),
    )
    who = identity(rng)
    card = with_luhn((prefix := pick(["4", "52", "6222", "3530", "6011", "2221", "6512"])) + number(15 - len(prefix)))
    express, union = (
        with_luhn(pick(["34", "37"]) + number(12)),
        with_luhn("62" + number(pick([14, 15, 16]))),
    )
    union = union if bank_card(union) else with_luhn("62" + "1" * 15)
    area, exchange, last = pick(["415", "212", "907", "646"]), f"{of(220, 999)}", number(4)
    american = pick(
        [
            f"({area}) {exchange}-{last}",
            f"({area}){exchange}-{last}",
            f"{area}-{exchange}-{last}",
            f"{area}.{exchange}.{last}",
            f"{area} {exchange} {last}",
            f"{area}-{exchange}-{last} x{number(3)}",
        ]
    )
    social = f"{pick([219, 457, 733, 123, 865]):03}", f"{of(1, 99):02}", f"{of(1, 9999):04}"
    octets = [str(pick([8, 11, 58, 101, 192, 203, 220])), *(str(of(256)) for _ in range(3))]
    chinese_digits = mobile.translate(
        str.maketrans("0123456789", pick(["零一二三四五六七八九", "〇幺二三四五六七八九"]))
    )
    common = [
        (f"{name}@{domain}", "EMAIL"),
        (f"{name}@{domain}", "EMAIL"),
        (f"{name} [at] {domain.replace('.', ' [dot] ')}", "EMAIL"),
        (f"{name}(at){domain.replace('.', '(dot)')}", "EMAIL"),
        (f"{name} AT {dotted.replace('dot', 'DOT')}", "EMAIL"),
        (f"{name}[at]{domain}", "EMAIL"),
        (f"{name} at {dotted}", "EMAIL"),
        (f"{name}＠{domain}", "EMAIL"),
        (full_width(f"{name}@{domain}"), "EMAIL"),
        (f"{name.upper()}@{domain.upper()}", "EMAIL"),
        (f"{name}\u200b@{domain}", "EMAIL"),
        (card, "BANK_CARD"),
        (grouped(card, (4, 4, 4), pick(" -.")), "BANK_CARD"),
        (full_width(card), "BANK_CARD"),
        (grouped(express, (4, 6), pick(" -")), "BANK_CARD"),
        (union, "BANK_CARD"),
        (grouped(union, (4, 4, 4, 4), " "), "BANK_CARD"),
        (".".join(octets), "IP_ADDRESS"),
        (".".join(octets), "IP_ADDRESS"),
        ("[.]".join(octets), "IP_ADDRESS"),
        (f"2001:{of(0x100, 0xFFF):x}:{of(1, 0xFFFF):x}::{of(1, 0xFFFF):x}", "IP_ADDRESS"),
        (":".join(f"{of(0x1000, 0xFFFF):x}" for _ in range(8)), "IP_ADDRESS"),
        (f"fe80::{of(0x100, 0xFFFF):x}:{of(0xFFFF):x}", "IP_ADDRESS"),
        (f"::ffff:{'.'.join(octets)}", "IP_ADDRESS"),
        (f"+44 20 7{number(3)} {number(4)}", "PHONE"),
        (f"+49 (0)30 {number(4)} {number(4)}", "PHONE"),
        (f"+33 {of(1, 7)} {' '.join(number(2) for _ in range(4))}", "PHONE"),
        (f"+81-3-{of(3000, 7000)}-{number(4)}", "PHONE"),
        (f"+8869{number(8)}", "PHONE"),
        (f"+852 {pick('569')}{number(3)} {number(4)}", "PHONE"),
        (f"+65 {pick('89')}{number(3)} {number(4)}", "PHONE"),
        (f"+86 {grouped(mobile, (3, 4, 4), joint)}", "PHONE"),
        (f"+1 {american}", "PHONE"),
        (f"0044 20 7{number(3)} {number(4)}", "PHONE"),
    ]
    chinese = [
        (who, "RESIDENT_ID"),
        (who.lower(), "RESIDENT_ID"),
        (grouped(who, (6, 8), pick(" -")), "RESIDENT_ID"),
        (grouped(who, (6, 4, 4), " "), "RESIDENT_ID"),
        (full_width(who), "RESIDENT_ID"),
        (f"{who[:9]}\u200b{who[9:]}", "RESIDENT_ID"),
        (grouped(who, (3, 3, 4, 2, 2), " "), "RESIDENT_ID"),
        (mobile, "PHONE"),
        (grouped(mobile, (3, 4, 4), joint), "PHONE"),
        (f"86-{mobile}", "PHONE"),
        (f"(+86){mobile}", "PHONE"),
        (f"0086{mobile}", "PHONE"),
        (full_width(mobile), "PHONE"),
        (" ".join(mobile), "PHONE"),
        (chinese_digits, "PHONE"),
        (grouped(mobile, (3, 3, 5), " "), "PHONE"),
        (f"010-{pick('68')}{number(7)}", "PHONE"),
        (f"(0755) {pick('28')}{number(7)}", "PHONE"),
        (f"（021）{pick('56')}{number(7)}", "PHONE"),
        (f"0571-8{number(7)}转{of(100, 999)}", "PHONE"),
        (f"400-{of(600, 900)}-{number(4)}", "PHONE"),
        (f"+86-10-{pick('68')}{number(7)}", "PHONE"),
        (address_zh(rng), "ADDRESS"),
        (address_zh(rng), "ADDRESS"),
        (address_zh(rng), "ADDRESS"),
    ]
    english = [
        ("-".join(social), "SSN"),
        (" ".join(social), "SSN"),
        ("-".join(social), "SSN"),
        (full_width("-".join(social)), "SSN"),
        (american, "PHONE"),
        (american, "PHONE"),
        (f"1-{area}-{exchange}-{last}", "PHONE"),
        (f"+1{area}{exchange}{last}", "PHONE"),
        (f"020 7946 0{number(3)}", "PHONE"),
        (f"(0161) 496 0{number(3)}", "PHONE"),
        (f"07700 900{number(3)}", "PHONE"),
        (address_en(rng), "ADDRESS"),
        (address_en(rng), "ADDRESS"),
        (address_en(rng), "ADDRESS"),
    ]
    return pick([*common, *(chinese if language == "zh" else english)])


def look_alike(rng: random.Random, language: str) -> str:
    """Numbers and names that are nobody's, some of which pass the checksum of what they are not."""
    number, of, pick = partial(numbers, rng), rng.randrange, rng.choice
    isbn = "978" + number(9)
    isbn += str(-sum(int(d) * (3 if place % 2 else 1) for place, d in enumerate(isbn)) % 10)
    card = with_luhn("62" + number(13))
    wrong_card = next(card[:-1] + d for d in "0123456789" if not luhn(card[:-1] + d))
    body = "110105" + "19491231" + number(3)
    wrong_identity = next(body + d for d in "0123456789" if not resident_id(body + d))
    common = [
        f"ISBN {isbn}",
        f"ISBN-13: {isbn[:3]}-{isbn[3]}-{isbn[4:8]}-{isbn[8:12]}-{isbn[12]}",
        isbn,
        f"{isbn[:3]}-{isbn[3:5]}-{isbn[5:9]}-{isbn[9:12]}-{isbn[12]}",
        f"ISBN 0-{number(3)}-{number(5)}-{number(1)}",
        f"SF{of(1, 10)}{number(11)}",
        wrong_card,
        grouped(wrong_card, (4, 4, 4), " "),
        wrong_identity,
        f"IMEI {with_luhn('35' + number(12))}",
        f"EAN {with_luhn('4' + number(11))}",
        f"{of(1990, 2030)}-{of(1, 13):02}-{of(1, 29):02}",
        f"{of(1, 29):02}.{of(1, 13):02}.{of(1990, 2030)}",
        f"{of(1, 13):02}-{of(1, 29):02}-{of(1990, 2030)}",
        f"{of(1990, 2030)}{of(1, 13):02}{of(1, 29):02}{number(6)}",
        f"{of(1, 10)}{number(2)},{number(3)},{number(3)}",
        f"{of(1, 10)}.{number(14)}",
        f"$ {of(100, 999)}.{number(2)}",
        f"127.0.0.{of(1, 9)}",
        f"{of(300, 999)}.{number(3)}.{number(2)}.1",
        f"10:{of(10, 60)}:{of(10, 60)}",
        "::1",
        f"@user{number(3)}",
        f"666-{of(10, 99)}-{number(4)}",
        f"9{number(2)}-{of(10, 99)}-{number(4)}",
        f"000-{of(10, 99)}-{number(4)}",
        f"0x{of(16**8):08x}",
        f"{number(4)}/{number(8)}",
        f"doi:10.{number(4)}/{number(4)}.{number(4)}",
        number(24),
        f"a{number(11)}b",
        f"{of(16**32):032x}",
        f"{of(16**8):08x}-{of(16**4):04x}-4{of(16**3):03x}-a{of(16**3):03x}-{of(16**12):012x}",
        f"1{of(6, 8)}{number(8)}",
        f"{of(10, 99)} {of(10, 99)} {of(10, 99)} {of(10, 99)}",
        f"std::vector<{pick(['int', 'a'])}>",
        f"{of(1, 20)} x {of(1, 20)} = {of(1, 400)}",
        f"nginx/1.{of(30)}.{of(9)}.{of(9)}",
        f"{of(1900, 2020)}-{of(2020, 2040)}",
    ]
    chinese = [
        f"订单号：{card}",
        f"订单编号13{number(9)}",
        f"订单{of(1, 10)}{number(17)}",
        f"快递单号 1{pick('3589')}{number(9)}",
        f"运单号为{card}",
        f"流水号：{with_luhn('4' + number(14))}",
        f"发票代码 {identity(rng)}",
        f"书号{isbn}",
        f"版本{of(9)}.{of(30)}.{of(30)}.{of(30)}",
        f"{of(1990, 2030)}年{of(1, 13)}月",
        f"{of(1, 20)}号线",
        f"第{of(1, 30)}号选手",
        f"人口{of(1, 9)}{number(7)}人",
        f"{of(1, 9)}号楼",
        f"乘{of(1, 900)}路公交",
        f"国发〔{of(2000, 2025)}〕{of(1, 60)}号",
    ]
    english = [
        f"order no. {card}",
        f"Order #{card}",
        f"order number is {with_luhn('4' + number(14))}",
        f"tracking number {pick(['1', '9'])}{number(11)}",
        f"Invoice: {of(200, 999)}-{of(200, 999)}-{number(4)}",
        f"ticket {of(200, 999)}-{of(10, 99)}-{number(4)}",
        f"version {of(9)}.{of(30)}.{of(30)}.{of(30)}",
        f"v{of(9)}.{of(30)}.{of(30)}.{of(30)}",
        f"the {of(1900, 2000)} Wall Street crash",
        f"{of(2, 30)} Angry Men",
        f"{of(2, 9)} ways",
        f"section {of(9)}.{of(30)}.{of(30)}.{of(30)}",
        f"transaction id {card}",
        f"serial number 1{pick('3589')}{number(9)}",
        "meet at example dot",
        f"pp. {of(100, 400)}-{of(400, 999)}",
    ]
    return pick([*common, *(chinese if language == "zh" else english)])


PROSE = {
    "en": [
        "The museum opens at nine and closes late in summer.",
        "Nobody had expected the vote to be this close.",
        "In 2019 the river froze for 12 days.",
        "Chapter 3 begins on page 41.",
    ],
    "zh": [
        "博物馆早上九点开门，夏天关得晚。",
        "谁也没料到票数如此接近。",
        "二〇一九年河面结冰十二天。",
        "第三章从第41页开始。",
    ],
}
FRAMES = {
    "en": [
        "Please write to {} before Friday.",
        "Contact: {}; thank you",
        "({})",
        "Hers is {}, I think.",
        "{}",
        "- {}\n",
        '"{}"',
        "see {} and below",
        "the form says {} on top",
    ],
    "zh": [
        "请联系{}，谢谢。",
        "我的是{}。",
        "电话/邮箱：{}",
        "“{}”\n第二天",
        "见{}和下文",
        "【{}】",
        "表上写着：{}",
        "（{}）",
        "其为{}；",
    ],
}


def generate(seed: int, texts: int) -> Iterator[Text]:
    """Odd ones hold personal data, even ones look-alikes; one language after the other."""
    rng = random.Random(seed)
    for number in range(texts):
        language = "zh" if number // 2 % 2 else "en"
        text, data = rng.choice(["", rng.choice(PROSE[language]) + rng.choice([" ", "\n"])]), []
        for _ in range(rng.choice([1, 1, 2, 3]) if number % 2 else 1):
            frame = rng.choice(FRAMES[language])
            before, after = frame.split("{}")
            # one in five in a text of the other language
            spoken = language if rng.random() < 0.8 else {"en": "zh", "zh": "en"}[language]
            value, kind = personal(rng, spoken) if number % 2 else (look_alike(rng, spoken), "")
            if kind:
                data.append(Finding(len(text + before), len(text + before + value), kind))
            text += before + value + after + rng.choice(["\n", " ；" if language == "zh" else " ; "])
        yield Text(text + rng.choice(["", rng.choice(PROSE[language])]), data, language)


class Score:
    """Counts of exact spans by (language, kind)."""

    def __init__(self) -> None:
        self.right: Counter[tuple[str, str]] = Counter()
        self.missed: Counter[tuple[str, str]] = Counter()
        self.wrong: Counter[tuple[str, str]] = Counter()
        self.failures: list[tuple[str, list, list]] = []

    def add(self, given: Text, found: list[Finding]) -> None:
        for counter, items in (
            (self.right, set(given.data) & set(found)),
            (self.missed, set(given.data) - set(found)),
            (self.wrong, set(found) - set(given.data)),
        ):
            counter.update((given.language, item.kind) for item in items)
        if set(given.data) != set(found):
            shown = [[(given.text[f.start : f.end], f.kind) for f in side] for side in (given.data, found)]
            self.failures.append((given.text, *shown))

    @property
    def recall(self) -> float:
        return self.right.total() / (self.right.total() + self.missed.total())

    @property
    def precision(self) -> float:
        return self.right.total() / (self.right.total() + self.wrong.total())


def measure(texts: list[Text]) -> tuple[Score, float]:
    """The score, and megabytes of UTF-8 a second of CPU time."""
    started = time.process_time()
    found = [find(text.text) for text in texts]
    seconds = time.process_time() - started
    score = Score()
    for text, items in zip(texts, found):
        score.add(text, items)
    return score, sum(len(text.text.encode()) for text in texts) / 1e6 / seconds


def from_faker(seed: int, values: int) -> Iterator[Text]:
    """Values of another library, each in a sentence; 10 or 11 bare digits and cards of 12 or 13 are announced."""
    from faker import Faker

    kinds = {
        "phone_number": "PHONE",
        "address": "ADDRESS",
        "credit_card_number": "BANK_CARD",
        "email": "EMAIL",
        "ipv4": "IP_ADDRESS",
        "ipv6": "IP_ADDRESS",
    }
    for locale, own in (("en_US", {"ssn": "SSN"}), ("en_GB", {}), ("zh_CN", {"ssn": "RESIDENT_ID"})):
        fake = Faker(locale)
        fake.seed_instance(seed)
        for method, kind in (kinds | own).items():
            for _ in range(values):
                value = getattr(fake, method)()
                before, after = ("记录写着", "，如此。") if locale == "zh_CN" else ("The record says ", " here.")
                if value.isdigit() and len(value) <= 13 and locale != "zh_CN":
                    before = "Call " if kind == "PHONE" else "Card: "
                yield Text(before + value + after, [Finding(len(before), len(before + value), kind)], locale)


def show(title: str, score: Score) -> None:
    print(f"\n{title}: recall {score.recall:.4f}, precision {score.precision:.4f}")
    for language, kind in sorted(score.right | score.missed | score.wrong):
        key = (language, kind)
        right, missed, wrong = score.right[key], score.missed[key], score.wrong[key]
        print(
            f"  {language:5} {kind:12} {right + missed:6} recall {right / max(1, right + missed):.4f}"
            f" precision {right / max(1, right + wrong):.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faker", action="store_true", help="needs `pip install faker`")
    parser.add_argument("--failures", type=int, default=0, metavar="N", help="show so many")
    options = parser.parse_args()
    score, speed = measure(list(generate(options.seed, options.texts)))
    show(f"{options.texts} generated texts, seed {options.seed}", score)
    shown = score.failures
    if options.faker:
        other, _ = measure(list(from_faker(options.seed, 300)))
        show("values of Faker", other)
        shown = shown + other.failures
    for text, given, found in shown[: options.failures]:
        print(repr(text), "\n   given", given, "\n   found", found)
    print(f"\nFIGURE pii_precision {score.precision:.4f}\nFIGURE pii_recall {score.recall:.4f}")
    print(f"FIGURE pii_megabytes_per_second {speed:.2f}")


if __name__ == "__main__":
    main()
