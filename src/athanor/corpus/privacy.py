"""Personal data out of texts: what has a form that can be checked becomes a placeholder that names its type.

What has a checksum must pass it: Chinese resident identity numbers (GB 11643-1999, ISO 7064 MOD 11-2) and bank cards
(Luhn, ISO/IEC 7812, and the beginning of a known issuer). So order numbers, ISBNs and the like stay. Telephone numbers
must have the form of a numbering plan, and stand apart from other digits.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from datetime import date
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from athanor.corpus.documents import Document
from athanor.corpus.files import Input, decode
from athanor.corpus.steps import Step
from athanor.errors import UserError

# Full-width digits and marks are read as their ASCII twins; one character each, so that positions stay.
TWINS = str.maketrans("０１２３４５６７８９＋－（）．＠：　–—‐‑\u00a0", "0123456789+-().@: ----\u0020")
# What an identifier that is no one's secret is introduced by.
OTHERS = re.compile(
    r"(?:ISBN(?:-1[03])?|ISSN|EAN|UPC|SKU|DOI|IMEI|order|tracking|invoice|serial|part|model|version|订单号?|訂單號?|单号"
    r"|快递|物流|运单|编号|編號|序列号|货号|条码|发票|书号|版本|型号|流水号|批号|文号|合同号?)"
    r"\s*(?:no|number|nr|id|号|码)?[.:#№]*\s*[#№]?\s*(?:[A-Z]{1,4}-?)?$",
    re.IGNORECASE,
)
VERSION = re.compile(r"(?:\bv|version|release|版本号?|section|chapter|rfc|oid|第|章节)[.:：]?\s*$", re.IGNORECASE)


class Kind(NamedTuple):
    """name: of the placeholder. pattern: of candidates. check: whether a candidate is one; None is always."""

    name: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool] | None = None


def digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def luhn(number: str) -> bool:
    """Whether the last of the digits is the check digit of the others."""
    doubled = (int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(number)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def bank_card(text: str) -> bool:
    """UnionPay 62, Visa 4, Mastercard 51-55 and 2221-2720, American Express 34 and 37, Discover 6011 and 65, JCB 35."""
    number = digits(text)
    lengths = {"62": range(16, 20), "4": (13, 16, 19), "5": (16,), "2": (16,), "34": (15,), "37": (15,)}
    lengths |= {"6011": (16, 19), "65": (16, 19), "35": (16, 19)}
    for start, allowed in lengths.items():
        if number.startswith(start) and len(number) in allowed:
            if start == "5" and not "51" <= number[:2] <= "55":
                continue
            if start == "2" and not "2221" <= number[:4] <= "2720":
                continue
            return luhn(number) and len(set(number)) > 1
    return False


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


def birthday(text: str) -> bool:
    try:
        return 1880 <= date(int(text[:4]), int(text[4:6]), int(text[6:])).year <= 2100
    except ValueError:
        return False


def social_security(text: str) -> bool:
    """What the Social Security Administration never issued is none."""
    area, group, serial = re.split(r"\D", text)
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def address(text: str) -> bool:
    """IPv4 or IPv6 of a host: not unspecified, loopback, link-local or for documentation."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (found.is_unspecified or found.is_loopback or found.is_link_local or found.is_multicast)


def international(text: str) -> bool:
    return 8 <= len(digits(text)) <= 15


def american(text: str) -> bool:
    """North American numbering plan: neither area code nor exchange begins with 0 or 1 or ends in 11."""
    number = digits(text)[-10:]
    return all(part[0] >= "2" and part[1:] != "11" for part in (number[:3], number[3:6]))


AREA = r"(?:10|2\d|[3-9]\d{2})"  # of China, without the 0
START, END = r"(?<![0-9A-Za-z.+_-])", r"(?![0-9A-Za-z_-])(?!\.\d)"  # no part of a longer number or name
DOMAIN_DOT = r"(?:\.|\s?[\[({](?:dot|\.)[\])}]\s?|\s(?:dot|DOT)\s)"
PATTERNS = {  # in the order in which they claim their characters
    "EMAIL": [
        r"(?<![\w.+%-])[\w.+%-]{1,64}(?:@|\s?[\[({](?:at|@)[\])}]\s?|\s(?:at|AT)\s(?=[\w-]+\s(?:dot|DOT)\s))"
        rf"(?:[\w-]{{1,63}}{DOMAIN_DOT})+[A-Za-z]{{2,24}}(?![\w-]|\.\w)"
    ],
    "RESIDENT_ID": [rf"{START}[1-9]\d{{5}}([ -]?)(?:18|19|20)\d{{6}}\1\d{{3}}[\dXx]{END}"],
    "BANK_CARD": [
        rf"{START}(?<!\d )[2-6]\d{{3}}([ -])\d{{4}}\1\d{{4}}\1\d{{1,4}}(?:\1\d{{1,3}})?{END}(?! \d{{4}}(?!\d))",
        rf"{START}[2-6]\d{{12,18}}{END}",
        rf"{START}3[47]\d{{2}}([ -]?)\d{{6}}\1\d{{5}}{END}",
    ],
    "SSN": [rf"{START}\d{{3}}([- ])\d{{2}}\1\d{{4}}{END}"],
    "IP_ADDRESS": [
        r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)",
        r"(?<![\w.])(?<![0-9A-Fa-f]:)(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,7}(?![\w:])",
    ],
    "PHONE": [
        # mobile, landline and service numbers of China
        rf"{START}(?:(?:\+|00)?86[ -]?|\(\+?86\) ?)?1[3-9]\d(?:([ -]?)\d{{4}}\1\d{{4}}|([ -])\d{{3}}\2\d{{5}}){END}",
        r"(?<![0-9A-Za-z.-])\+86[ -]?1[3-9]\d(?:([ -]?)\d{4}\1\d{4})" + END,
        rf"(?<![0-9A-Za-z._/-])(?<!\d )(?:\+86[ -]?\(?0?{AREA}\)?|(?<!\+)\(0{AREA}\)|(?<!\+)0{AREA})"
        rf"[ -]?[2-9]\d{{2,3}}[ -]?\d{{4}}(?:[ -]?(?:ext\.?|转|x) ?\d{{1,5}})?{END}",
        rf"{START}[48]00(?:[ -]\d{{3}}[ -]?\d{{4}}|-\d{{4}}-\d{{3}}){END}",
    ],
    "PHONE international": [
        r"(?<![0-9A-Za-z._/-])(?<!\d )(?:\+|(?<!\+)00)[1-9]\d{0,2}"
        rf"[ .-]?(?:\(0?\d{{1,4}}\)[ .-]?)?\d{{1,4}}(?:[ .-]?\d{{2,4}}){{1,4}}{END}"
    ],
    "PHONE american": [rf"{START}(?:1[ .-])?(?:\([2-9]\d{{2}}\) ?|[2-9]\d{{2}}[ .-])\d{{3}}[ .-]\d{{4}}{END}"],
}
CHECKS: dict[str, Callable[[str], bool]] = {
    "RESIDENT_ID": resident_id,
    "BANK_CARD": bank_card,
    "SSN": social_security,
    "IP_ADDRESS": address,
    "PHONE international": international,
    "PHONE american": american,
}
KINDS = [
    Kind(name.split()[0], re.compile(pattern, re.ASCII), CHECKS.get(name))
    for name, patterns in PATTERNS.items()
    for pattern in patterns
]
NAMES = tuple(dict.fromkeys(kind.name for kind in KINDS))
INTRODUCED = {"BANK_CARD", "PHONE", "RESIDENT_ID", "SSN"}  # not when an order number or the like is announced


class Finding(NamedTuple):
    """text[start:end] is of this kind."""

    start: int
    end: int
    kind: str


def find(text: str, names: Iterable[str] = NAMES) -> list[Finding]:
    """In the order of the text; none overlaps another."""
    plain = text.translate(TWINS)
    if not any(map(str.isdigit, plain)) and "@" not in plain and " at " not in plain and "[at]" not in plain:
        return []
    found: list[Finding] = []
    taken = bytearray(len(text))
    wanted = set(names)
    for kind in KINDS:
        if kind.name not in wanted:
            continue
        for match in kind.pattern.finditer(plain):
            start, end = match.span()
            if any(taken[start:end]) or (kind.check and not kind.check(match[0])):
                continue
            before = plain[max(0, start - 40) : start]
            if (OTHERS if kind.name in INTRODUCED else VERSION).search(before):
                continue
            taken[start:end] = b"\1" * (end - start)
            found.append(Finding(start, end, kind.name))
    return sorted(found)


class Privacy(Step):
    """Masks personal data, and counts it by kind.

    Args:
        kinds: which to mask; None for all: EMAIL, RESIDENT_ID, BANK_CARD, SSN, IP_ADDRESS, PHONE.
        consistent: number the placeholders of a document, equal data alike: [EMAIL_1], [EMAIL_2]; else [EMAIL].
        drop_from: documents with so many findings are lists of people and go; None keeps all.
    """

    name = "privacy"

    def __init__(
        self,
        kinds: list[str] | None = None,
        consistent: bool = False,
        drop_from: int | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if unknown := set(kinds or ()) - set(NAMES):
            raise UserError(f"Privacy: no kind {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.")
        self.kinds = kinds or list(NAMES)
        self.consistent = consistent
        self.drop_from = drop_from

    def apply(self, document: Document) -> Document | str:
        text = document.text
        findings = find(text, self.kinds)
        if not findings:
            return document
        if self.drop_from is not None and len(findings) >= self.drop_from:
            return f"{self.drop_from} personal data and more"
        parts, position = [], 0
        numbers: dict[tuple[str, str], int] = {}
        for start, end, kind in findings:
            self.counts[kind] += 1
            label = kind
            if self.consistent:
                same = (kind, "".join(text[start:end].translate(TWINS).lower().split()))
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
        self.identities: set[str] = set()
        for path in [files] if isinstance(files, str) else files:
            with Input(Path(path)) as file:
                for _, offset, line in file.lines():
                    identity = decode(line, path, offset).split(" #")[0].strip()
                    if identity and not identity.startswith("#"):
                        self.identities.add(identity)

    def apply(self, document: Document) -> Document | str:
        identity = str(document.id)
        hashed = f"blake2b:{blake2b(identity.encode(), digest_size=16).hexdigest()}"
        return "on the removal list" if {identity, hashed} & self.identities else document

    def drop(self, document: Document, reason: str) -> None:
        """No sample is kept."""
        self.dropped[reason] += 1
