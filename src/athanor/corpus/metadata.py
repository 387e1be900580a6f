"""What a web page says of itself: its title, date, language and address, from its head and its linked data."""

import re
from collections.abc import Iterator
from datetime import date
from urllib.parse import urlsplit

from lxml import etree

TITLES = ("og:title", "twitter:title", "dc.title", "citation_title", "headline")
DATES = (
    "article:published_time", "datepublished", "og:published_time", "og:pubdate", "publishdate", "publish_date",
    "publish-date", "pubdate", "parsely-pub-date", "sailthru.date", "dc.date.issued", "dc.date", "dcterms.created",
    "citation_publication_date", "citation_date", "date", "weibo:article:create_at",
    "article:modified_time", "datemodified",
)  # fmt: skip
LINKED_DATA_DATE = re.compile(r'"date(?:Published|Created)"\s*:\s*"([^"]{8,40})"')
DAY = re.compile(
    r"((?:19|20)\d\d)(?:[-/.]|\s*年\s*)(\d\d?)(?:[-/.]|\s*月\s*)(\d\d?)(?!\d)|((?:19|20)\d\d)(\d\d)(\d\d)(?!\d)"
)
PATH_DAY = re.compile(r"/((?:19|20)\d\d)[-/]?([01]\d)[-/]?([0-3]\d)(?:/|[^\d/])")
LANGUAGE = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]+)*\Z")


def metadata(root: etree._Element, url: str = "") -> dict[str, str]:
    """Those of title, date (YYYY-MM-DD), page_language (lower case, without its region) and url that are said.

    url: the address that the page was fetched from, if it is known.
    """
    said: dict[str, str] = {}
    parts: dict[str, list[etree._Element]] = {"meta": [], "link": [], "script": [], "time": []}
    for element in root.iter(*parts):
        parts[element.tag].append(element)
    for element in parts["meta"]:
        name = element.get("property") or element.get("name") or element.get("itemprop") or element.get("http-equiv")
        content = (element.get("content") or "").strip()
        if name and content:
            said.setdefault(name.lower(), content)
    canonical = next((e.get("href", "") for e in parts["link"] if e.get("rel") == "canonical"), "")
    address = next((a for a in (url, canonical, said.get("og:url", "")) if web(a)), "")
    titles = (said.get(name, "") for name in TITLES)
    found = {
        "title": next(filter(None, titles), "") or text_of(root, "title") or text_of(root, "h1"),
        "date": next(dates(parts, said, address), ""),
        "page_language": language(root.get("lang") or said.get("content-language") or said.get("og:locale") or ""),
        "url": address,
    }
    return {name: value for name, value in found.items() if value}


def text_of(root: etree._Element, tag: str) -> str:
    element = next(root.iter(tag), None)
    return "" if element is None else " ".join("".join(element.itertext()).split())


def dates(parts: dict[str, list[etree._Element]], said: dict[str, str], address: str) -> Iterator[str]:
    """The likeliest first."""
    for name in DATES:
        yield from day(DAY.match(said.get(name, "")))
    for element in parts["script"]:
        if element.get("type") == "application/ld+json" and (found := LINKED_DATA_DATE.search(element.text or "")):
            yield from day(DAY.match(found[1]))
    for element in parts["time"]:
        yield from day(DAY.match(element.get("datetime", "")))
    yield from day(PATH_DAY.search(urlsplit(address).path))


def day(found: re.Match[str] | None) -> Iterator[str]:
    if found:
        try:
            yield date(*(int(part) for part in found.groups() if part)).isoformat()
        except ValueError:
            return


def language(code: str) -> str:
    found = LANGUAGE.match(code.strip())
    return found[1].lower() if found else ""


def web(address: str) -> bool:
    try:
        return urlsplit(address).scheme in ("http", "https") and bool(urlsplit(address).hostname)
    except ValueError:
        return False
