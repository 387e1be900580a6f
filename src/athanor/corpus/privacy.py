"""Personal data out of texts: what has a form that can be checked becomes a placeholder that names its type.

What has a checksum must pass it: Chinese resident identity numbers (GB 11643-1999, ISO 7064 MOD 11-2) and bank cards
(Luhn, ISO/IEC 7812, and the beginning of a known issuer). So order numbers, ISBNs and the like stay. Telephone numbers
must have the form of a numbering plan (Google's libphonenumber knows them all) and stand apart from other digits. What
a number is announced as decides where its form does not: "order 13812345678" stays, "tel: 4155552671" goes. Postal
addresses are in addresses.py, names in names.py.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import phonenumbers

from athanor.corpus.addresses import addresses
from athanor.corpus.documents import Document
from athanor.corpus.files import Input, decode
from athanor.corpus.steps import Step
from athanor.errors import UserError

# Full-width and mathematical characters are read as their ASCII twins; one character each, so that positions stay.
# A full-width colon stays: it introduces, and an ASCII one may belong to an IPv6 address.
TWINS = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF1A}
TWINS |= {0x1D7CE + number: str(number % 10) for number in range(50)}
TWINS |= {ord(mark): twin for mark, twin in zip("　\u00a0\u2009\u202f–—‐‑−", " " * 4 + "-" * 5)}
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")

# What an identifier that is no one's secret is introduced by.
OTHERS = re.compile(
    r"(?:(?<![A-Za-z])(?:ISBN(?:-1[03])?|ISSN|EAN|UPC|SKU|DOI|IMEI|ICCID|GTIN|VIN|order|orders|tracking|shipment|parcel|waybill|invoice|receipt"
    r"|serial|part|model|version|transaction|confirmation|reference|ref|ticket|case|batch|lot|item|product|article|asset|barcode|PO|RMA"
    r"|patent|licen[cs]e|build|commit|revision|checksum|hash|timestamp|population|revenue|sum|total|amount)"
    r"|订单|訂單|单号|單號|快递|物流|运单|运单号码|包裹|编号|編號|序列|货号|条码|条形码|发票|书号|版本|型号|流水|批号|文号|合同|交易号?|凭证|工单"
    r"|票号|课题|项目|专利号?|申请号|许可证|时间戳|人口|总额|金额|版号)"
    r"\s*(?:numbers?|no|nr|num|id|code|key|号码|代码|编号|号|號|码)?(?:\s+(?:is|was|of|has|are)|[是为])?"
    r"[\s.:：=#№(\"“]{0,4}(?:[A-Z]{1,4}-?)?$",
    re.IGNORECASE,
)
AFTER = re.compile(
    r"[)\"”]?\s?(?:\(?(?:ISBN|order|tracking|invoice|serial)\b|(?:is|was)\s(?:the|my|your|our|an?|his|her)\s"
    r"(?:order|tracking|invoice|serial|ticket|reference|case|model)\b|[是为](?:[你我他]的)?(?:订单|快递|运单|流水|编号|书号))",
    re.IGNORECASE,
)
VERSION = re.compile(
    r"(?:(?<![A-Za-z])v|version|release|build|firmware|版本号?|section|chapter|rfc|oid|第|章节|[A-Za-z]/|driver|升级[到至])[.:：]?\s*$",
    re.IGNORECASE,
)


def announced(words: str) -> re.Pattern[str]:
    """That the text before a number ends by saying that it is one of these."""
    link = (
        r"(?:\s?(?:numbers?|no\.?|nr\.?|#|号码?|號碼?))?\s?(?:(?:is|at|on|me|us|him|her|to)\b|[是为])?[\s:：,/(]{0,3}"
    )
    return re.compile(rf"(?:{words}){link}$", re.IGNORECASE)


CALLED = announced(
    r"(?<![A-Za-z])(?:tel|telephone|phone|mobile|cell|cellphone|call|fax|whatsapp|sms|text|dial|hotline|ring)[.:]?"
    "|电话|電話|手机|手機|致电|拨打|传真|热线|联系方式|座机|来电|短信|微信"
)
CARD = announced(
    r"(?<![A-Za-z])(?:cards?|visa|mastercard|amex|american express|discover|unionpay|maestro|jcb)"
    "|卡号|信用卡|银行卡|储蓄卡|借记卡|账号|帐号"
)
SECURITY = announced(r"(?<![A-Za-z])(?:ssn|social security)|社会安全")
IDENTITY = announced("身份证|身份證|证件")


class Kind(NamedTuple):
    """name: of the placeholder. pattern: of candidates. check: whether a candidate is one; None is always. after: what
    must announce it; None is nothing.
    """

    name: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool] | None = None
    after: re.Pattern[str] | None = None


def digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def luhn(number: str) -> bool:
    """Whether the last of the digits is the check digit of the others."""
    doubled = (int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(number)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


# Beginnings of the numbers of issuers of cards, and their lengths.
ISSUERS = re.compile(
    r"62\d{14,17}|4\d{15}|4\d{18}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}(?:\d{3})?|35\d{14}(?:\d{3})?|3(?:0[0-5]|[689]\d)\d{11}|(?:2131|1800)\d{11}"
)


def bank_card(text: str) -> bool:
    """UnionPay, Visa, Mastercard, American Express, Discover, JCB, Diners."""
    return bool(ISSUERS.fullmatch(digits(text))) and some_card(text)


def some_card(text: str) -> bool:
    """Of any issuer."""
    number = digits(text)
    return 12 <= len(number) <= 19 and luhn(number) and len(set(number)) > 1 and not number.startswith(("978", "979"))


PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
    83,
}


def resident_id(text: str) -> bool:
    """18 places: region, date of birth, sequence, and a check digit, which may be X."""
    number = "".join(character for character in text.upper() if character.isdigit() or character == "X")
    if int(number[:2]) not in PROVINCES or not birthday(number[6:14]):
        return False
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(number, weights)) % 11] == number[17]


def old_resident_id(text: str) -> bool:
    """15 places, before 1999: no century and no check digit."""
    return int(text[:2]) in PROVINCES and birthday(f"19{text[6:12]}")


def birthday(text: str) -> bool:
    try:
        return 1880 <= date(int(text[:4]), int(text[4:6]), int(text[6:])).year <= 2100
    except ValueError:
        return False


TOP = re.compile(
    "com|org|net|edu|gov|mil|int|info|biz|io|ai|dev|app|xyz|top|name|museum|cn|uk|de|fr|jp|tw|hk|ru|eu|us|ca|au|in|br|kr|sg|nl"
    "|ch|es"
)


def mailbox(text: str) -> bool:
    """Where the dots are words or stand alone, the last part is the name of a top-level domain."""
    return not re.search(" (?:dot|\\.) ", text.lower()) or bool(TOP.fullmatch(text.lower().split()[-1]))


def social_security(text: str) -> bool:
    """What the Social Security Administration never issued is none."""
    number = digits(text)
    return number[:3] not in ("000", "666") and number < "9" and number[3:5] != "00" and number[5:] != "0000"


def address(text: str) -> bool:
    """IPv4 or IPv6: not unspecified, loopback or broadcast."""
    text = text.replace("[.]", ".")
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    if ":" in text and "." not in text and len(list(filter(None, text.split(":")))) < 2:  # ::add or 1:: of a program
        return False
    return not (found.is_unspecified or found.is_loopback or text == "255.255.255.255")


def international(text: str) -> bool:
    """As long as numbers of its country are."""
    number = parsed(re.sub(r"^00", "+", text.lstrip("( ")))
    return number is not None and phonenumbers.is_possible_number(number)


def parsed(text: str, region: str | None = None) -> phonenumbers.PhoneNumber | None:
    """Without its extension."""
    try:
        return phonenumbers.parse(re.split("[,x#ext转轉]", text.replace("(0)", ""))[0], region)
    except phonenumbers.NumberParseException:
        return None


# Where numbers in national form begin with 0 and are written in groups.
REGIONS = ("GB", "FR", "DE", "JP", "TW", "AU", "KR", "IT", "NL", "BE", "CH", "AT", "SE", "IE", "NZ", "ZA", "IN", "TR")
COMPACT = ("GB", "FR", "JP", "TW", "AU")  # or without groups, where few other numbers would do


def national(text: str) -> bool:
    """One that is in use in one of the REGIONS; no date, and no bits."""
    if DATE.fullmatch(text) or set(digits(text)) <= {"0", "1"}:
        return False
    numbers = (parsed(text, region) for region in (COMPACT if text.isdigit() else REGIONS))
    return any(number and phonenumbers.is_valid_number(number) for number in numbers)


DATE = re.compile(r"\(?\d{1,2}\)?[-./ ]\d{1,2}[-./ ](?:\d{2}){1,2}|\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}")


YEARS = re.compile(r"(?:1[5-9]|20)\d\d-(?:1[5-9]|20)\d\d")


def called(text: str) -> bool:
    """What a number may be that is said to be one to call."""
    return 7 <= len(digits(text)) <= 13 and not DATE.fullmatch(text) and not YEARS.fullmatch(text)


AREA = r"(?:10|2\d|[3-9]\d{2})"  # of China, without the 0
START, END = r"(?<![0-9A-Za-z.+_-])", r"(?![0-9A-Za-z_-])(?!\.\d)"  # no part of a longer number or name
APART = r"(?<!\d )"  # nor of a row of numbers
DOT = r"(?:\.|\s?[\[({<](?:[Dd][Oo][Tt]|DOT|\.|点)[\])}>]\s?| [Dd][Oo][Tt] | \. )"
AT = r"(?:@|\s?[\[({<](?:[Aa][Tt]|@)[\])}>]\s?|\s@\s?|@\s| [Aa][Tt] (?=[\w-]+ [Dd][Oo][Tt] ))"
EXTENSION = r"(?:[ ,]{0,2}(?:ext\.?|转|轉|x|#) ?\d{1,6})?"
CN = r"(?:(?:\+|00)?86[ -]?|\(\+?86\)[ -]?|\+\(86\)[ -]?)"
HAN_DIGIT = "[〇零一二三四五六七八九幺]"


def whole_id(text: str) -> bool:
    return len(re.sub(r"\W", "", text)) == 18 and resident_id(text)


def kind(
    name: str,
    *patterns: str,
    check: Callable[[str], bool] | None = None,
    after: re.Pattern[str] | None = None,
    start: str = START,
    end: str = END,
) -> list[Kind]:
    """One for each pattern, between what must and must not stand around it."""
    return [Kind(name, re.compile(start + pattern + end, re.ASCII), check, after) for pattern in patterns]


LOCAL = r"(?<![\w.+%-])\w[\w.+%&'-]{0,63}"
TAKEN = r"(?<![0-9A-Za-z._/-])(?<!\d,)(?<!\d )"  # as START, but for a + that is its own
KINDS = [  # in the order in which they claim their characters
    *kind(
        "EMAIL",
        rf"{AT}(?:[\w-]{{1,63}}{DOT})+[A-Za-z]{{2,24}}(?![\w-]|\.\w)",
        r"#(?:qq|163|126|gmail|sina|sohu|foxmail|hotmail|outlook|yahoo)\.com(?:\.cn)?(?!\w)",
        check=mailbox,
        start=LOCAL,
        end="",
    ),
    *kind("RESIDENT_ID", r"[1-9]\d{5}([ -]?)(?:18|19|20)\d{6}\1\d{3}[ -]?[\dXx]", check=resident_id),
    *kind(
        "RESIDENT_ID",
        r"[1-9]\d([ -])\d{1,4}(?:\1\d{1,6}){2,15}\1?[\dXx]",
        r"[1-9]\d{2,5}([ -])\d{1,6}(?:\1\d{1,6}){1,4}\1?[\dXx]",
        check=whole_id,
        start=START + APART,
    ),
    *kind("RESIDENT_ID", r"[1-9]\d{14}", check=old_resident_id, after=IDENTITY),
    *kind(
        "BANK_CARD",
        r"[2-6]\d{3}([ .-])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?",
        check=bank_card,
        start=START + APART,
        end=END + r"(?! \d{4}(?!\d))",
    ),
    *kind(
        "BANK_CARD",
        r"(?:[2-6]\d{13,18}|1800\d{11})",
        r"3[47]\d{2}([ .-])\d{6}\1\d{5}",
        r"3[0689]\d{2}([ .-])\d{6}\1\d{4}",
        r"(?:62\d{4}[ .-]\d{10,13}|[2-6]\d{3}[ .-]\d{12}|[2-6]\d{7}[ .-]\d{8})",
        check=bank_card,
    ),
    *kind("BANK_CARD", r"\d(?:[ .-]?\d){11,18}", check=some_card, after=CARD),
    *kind("SSN", r"\d{3}([- .])\d{2}\1\d{4}", check=social_security),
    *kind("SSN", r"\d{9}", check=social_security, after=SECURITY),
    *kind(
        "IP_ADDRESS",
        r"(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4})(?![\w:])(?!\.\d)",
        check=address,
        start=r"(?<![\w.])(?<!\w:)",
        end="",
    ),
    *kind(
        "IP_ADDRESS",
        r"(?:\d{1,3}(?:\.|\[\.\])){3}\d{1,3}",
        check=address,
        start=r"(?<![\w.-])",
        end=r"(?![\w]|\.\d)",
    ),
    # mobile numbers of China, their digits in groups
    *kind(
        "PHONE",
        rf"{CN}?1[3-9]\d(?:([ .-]?)\d{{4}}\1\d{{4}}|([ .-])\d{{3}}\2\d{{5}}|\d{{4}}[ .-]\d{{4}}|[ .-]\d{{8}})",
        rf"{CN}?1[3-9]\d\d[ .-]\d{{4}}[ .-]?\d{{3}}",
    ),
    *kind("PHONE", rf"{CN}?1([ .-])[3-9](?:\1\d){{9}}", start=START + r"(?<!\d[ .-])", end=END + r"(?![ .-]\d)"),
    *kind(
        "PHONE",
        rf"[一幺1][三四五六七八九](?:[ -]?{HAN_DIGIT}){{9}}",
        start=f"(?<!{HAN_DIGIT})",
        end=f"(?!{HAN_DIGIT})",
    ),
    # landline and service numbers of China
    *kind(
        "PHONE",
        rf"(?:{CN}\(?0?{AREA}\)?|(?<!\+)\(0{AREA}\)|(?<!\+)0{AREA})[ -]?[2-9]\d{{2,3}}[ -]?\d{{4}}{EXTENSION}",
        start=TAKEN,
    ),
    *kind("PHONE", r"[48]00(?:[ -]\d{3}[ -]?\d{4}|-\d{4}-\d{3}|-\d{7})"),
    *kind(
        "PHONE",
        r"(?:\(\+[1-9]\d{0,2}\)|(?:\+|(?<!\+)00)[1-9]\d{0,2})[ ./-]?(?:\(0?\d{1,4}\)[ ./-]?)?"
        rf"\d{{1,5}}(?:[ ./-]?\d{{1,5}}){{1,5}}{EXTENSION}",
        check=international,
        start=TAKEN,
    ),
    # North American; of others what begins with 0
    *kind(
        "PHONE",
        rf"(?:\+?1[ .-]?)?(?:\([2-9]\d{{2}}\)[ -]?|[2-9]\d{{2}}[ ./-])[2-9]\d{{2}}[ .-]\d{{4}}{EXTENSION}",
    ),
    *kind(
        "PHONE",
        rf"(?:\(0\d{{1,5}}\) ?|0\d{{1,5}}[ .-]?)\d{{2,8}}(?:[ .-]\d{{2,4}}){{0,4}}{EXTENSION}",
        check=national,
        start=TAKEN,
    ),
    *kind(
        "PHONE",
        rf"\+?(?:\(\d{{2,5}}\)[ .-]?)?\d{{1,14}}(?:[ .-]\(?\d{{1,8}}\)?){{0,5}}{EXTENSION}",
        check=called,
        after=CALLED,
        start=r"(?<![0-9A-Za-z._-])",
    ),
]
NAMES = (*dict.fromkeys(each.name for each in KINDS), "ADDRESS")
# What a text must have for a kind to be worth looking for; of others seven digits that stand together.
SIGNS = {"EMAIL": re.compile("[@#]|[Aa][Tt]"), "IP_ADDRESS": re.compile(r"\d(?:\.|\[\.\])\d|:[0-9A-Fa-f]*:")}
SEVEN = re.compile(rf"\d(?:[^\w\n]{{0,3}}\d){{6}}|{HAN_DIGIT}(?:[ -]?{HAN_DIGIT}){{6}}", re.ASCII)
INTRODUCED = {"BANK_CARD", "PHONE", "RESIDENT_ID", "SSN"}  # not when an order number or the like is announced


class Finding(NamedTuple):
    """text[start:end] is of this kind."""

    start: int
    end: int
    kind: str


def find(text: str, names: Iterable[str] = NAMES) -> list[Finding]:
    """In the order of the text; none overlaps another."""
    if INVISIBLE.search(text):
        places = [place for place, character in enumerate(text) if not INVISIBLE.match(character)]
        seen = find("".join(text[place] for place in places), names)
        return [Finding(places[start], places[end - 1] + 1, kind) for start, end, kind in seen]
    plain = text.translate(TWINS)
    taken = bytearray(len(text))
    found: list[Finding] = []
    for start, end, kind in candidates(plain, set(names)):
        if not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            found.append(Finding(start, end, kind))
    return sorted(found)


def candidates(plain: str, wanted: set[str]) -> Iterator[tuple[int, int, str]]:
    """(start, end, kind), those that claim first coming first."""
    if "ADDRESS" in wanted:
        yield from ((start, end, "ADDRESS") for start, end in addresses(plain))
    seen = {name for name in wanted if SIGNS.get(name, SEVEN).search(plain)}
    for name, pattern, check, after in KINDS:
        if name not in seen:
            continue
        for match in pattern.finditer(plain):
            start, end = match.span()
            if check and not check(match[0]):
                continue
            before = plain[max(0, start - 40) : start]
            if after and not after.search(before):
                continue
            if name in INTRODUCED and (OTHERS.search(before) or AFTER.match(plain, end)):
                continue
            if name == "IP_ADDRESS" and VERSION.search(before):
                continue
            yield start, end, name


class Privacy(Step):
    """Masks personal data, and counts it by kind.

    Args:
        kinds: which to mask; None for all: EMAIL, RESIDENT_ID, BANK_CARD, SSN, IP_ADDRESS, PHONE, ADDRESS.
        consistent: False writes [EMAIL]. True numbers the placeholders of a document, equal data alike: [EMAIL_1],
            [EMAIL_2]. "corpus" gives equal data equal placeholders in all documents, [EMAIL_3f9c20d1a4]: a keyed hash.
        key: file with the key of "corpus", 16 bytes and more that no one can guess: who has it can try out which number
            became which placeholder. Only its hash enters the run.
        drop_from: documents with so many findings are lists of people and go; None keeps all.
        names: directory of a model that finds names; they become [NAME]. See `athanor.corpus.names`.
    """

    name = "privacy"

    def __init__(
        self,
        kinds: list[str] | None = None,
        consistent: bool | Literal["corpus"] = False,
        drop_from: int | None = None,
        key: str | list[str] | None = None,
        names: str | list[str] | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if unknown := set(kinds or ()) - set(NAMES):
            raise UserError(f"Privacy: no kind {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.")
        if (consistent == "corpus") != (key is not None):
            raise UserError("Privacy: consistent: corpus and a key belong together; give both or neither.")
        self.kinds = NAMES if kinds is None else kinds
        self.consistent = consistent
        self.drop_from = drop_from
        self.key = b"" if key is None else secret(key)
        self.names = names

    @cached_property
    def recognizer(self) -> Callable[[str], list[tuple[int, int]]] | None:
        if self.names is None:
            return None
        from athanor.corpus.names import recognizer

        return recognizer(self.names)

    def find(self, text: str) -> list[Finding]:
        findings = find(text, self.kinds)
        if self.recognizer is None:
            return findings
        named = [Finding(start, end, "NAME") for start, end in self.recognizer(text)]
        free = [new for new in named if all(new.end <= old.start or old.end <= new.start for old in findings)]
        return sorted([*findings, *free])

    def apply(self, document: Document) -> Document | str:
        text = document.text
        findings = self.find(text)
        if not findings:
            return document
        if self.drop_from is not None and len(findings) >= self.drop_from:
            return f"{self.drop_from} personal data and more"
        parts, position = [], 0
        numbers: dict[tuple[str, str], int] = {}
        for start, end, kind in findings:
            self.counts[kind] += 1
            label = kind
            same = kind, normal(text[start:end])
            if self.consistent == "corpus":
                label = f"{kind}_{blake2b(chr(0).join(same).encode(), key=self.key, digest_size=5).hexdigest()}"
            elif self.consistent:
                if same not in numbers:
                    numbers[same] = 1 + sum(other == kind for other, _ in numbers)
                label = f"{kind}_{numbers[same]}"
            parts += [text[position:start], f"[{label}]"]
            position = end
        self.counts["documents changed"] += 1
        return document._replace(text="".join(parts) + text[position:])

    def drop(self, document: Document, reason: str) -> None:
        """No sample is kept of what is dropped for the persons in it."""
        self.dropped[reason] += 1


def normal(value: str) -> str:
    """What two spellings of the same value have in common: case, width, spaces and hyphens aside."""
    return re.sub(r"[\s()-]", "", INVISIBLE.sub("", value).translate(TWINS).lower())


def secret(key: str | list[str]) -> bytes:
    """The key in a file, at most 64 bytes of it."""
    with Input(Path(key if isinstance(key, str) else key[0])) as file:
        found = file.read().strip()
    if len(found) < 16:
        raise UserError(f"Privacy: the key in {key} has {len(found)} bytes; make one with `openssl rand -hex 32`.")
    return blake2b(found).digest()


class Removed(Step):
    """Drops the documents whose identity is on a list, for those who withdrew their consent or ask to be forgotten.

    The list is an input of the experiment, so that everything made after it has its hash in its lineage.

    Args:
        files: text files, an identity a line; what follows a # and blank lines are remarks. An identity may be
            `blake2b:` and the hexadecimal 16-byte hash of it, where the list itself must not tell.
    """

    name = "removed on request"

    def __init__(self, files: list[str] | str, only: list[str] | None = None):
        super().__init__(only)
        self.identities = removal_list(files)

    def apply(self, document: Document) -> Document | str:
        return "on the removal list" if names_of(document.id) & self.identities else document

    def drop(self, document: Document, reason: str) -> None:
        """No sample is kept."""
        self.dropped[reason] += 1


def removal_list(files: list[str] | str) -> set[str]:
    """The identities in the files, or hashes of them."""
    identities = set()
    for path in [files] if isinstance(files, str) else files:
        with Input(Path(path)) as file:
            for _, offset, line in file.lines():
                identity = decode(line, path, offset).split(" #")[0].strip()
                if identity and not identity.startswith("#"):
                    identities.add(identity)
    return identities


def names_of(identity: str) -> set[str]:
    """By which a document can be on a removal list: its identity, that of what it repeats or was made of (a#2,
    a#delete-1), and hashes of these.
    """
    plain = {name := str(identity)}
    while (shorter := re.sub(r"#(?:[a-z]+-)?\d+$", "", name)) != name:
        plain.add(name := shorter)
    return plain | {f"blake2b:{blake2b(name.encode(), digest_size=16).hexdigest()}" for name in plain}
