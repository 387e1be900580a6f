"""The article in a web page by the density of its text: in one pass over the tree, four times as fast as trafilatura.

A page is cut into passages. Each weighs what it has of text outside links, or less than nothing where it is links or
scraps; what is named as surroundings (menus, comments, adverts) is left out unless most of the page is in it. The
article is the element whose passages weigh the most together (after Readability and Kohlschütter et al. 2010,
doi:10.1145/1718487.1718542), or the part of it that calls itself the article's body. A character of Chinese, Japanese
or Korean weighs as much as 2.5 letters.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from lxml import etree

GONE = """
    script style noscript template iframe svg canvas object embed audio video button input select textarea nav footer
    aside menu dialog map head title
    """.split()  # noqa: SIM905
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
ITEMS = frozenset(("p", "li", "tr", "pre", "dd", "dt", "blockquote"))  # what keeps a short passage of an article
ASIDE = frozenset(("header", "form", "figure", "figcaption"))
BLOCKS = frozenset(
    """
    html body div section article main ul ol dl table tbody thead tfoot caption center address hr details summary
    fieldset hgroup
    """.split()  # noqa: SIM905
).union(HEADINGS, ITEMS, ASIDE)
SURROUNDINGS = re.compile(
    r"comment|disqus|discuss|share(?![a-z])|share-?_?(?:bar|button|tool)|sharing(?!-with)|social|related|side-?bar|promo|"
    r"newsletter|subscri|foot(?!ball)|(?<![a-z])nav|menu|breadcrumb|advert|(?<![a-z])ads?(?![a-z])|sponsor|cookie|banner|"
    r"popup|modal|caption|byline|(?<![a-z])author|(?<![a-z])tags?(?![a-z])|taglist|rating|recommend|widget|toolbar|"
    r"paginat|pager|copyright|disclaimer|hidden|(?<![a-z])meta(?![a-z])|more-?_?(?:from|on|stories|news|articles)|"
    r"most-?_?(?:read|popular|viewed)|trending|popular|outbrain|taboola|sign-?up|login|masthead|skip|timestamp|dateline|"
    r"pubdate|(?<![a-z])date(?![a-z])|credit|read-?_?(?:more|next)|also-?(?:read|like)|see-?also|topics|feedback|teaser|"
    r"gallery|carousel|slideshow|video-|player|noprint|toc(?![a-z])|jump|gdpr|consent|edit-?section|live-?list|"
    r"(?:article|content|text|body)[-_]right(?![a-z])"
)
BODY = re.compile(
    r"(?:arti(?:cle)?|entry|post|story|news)[-_]*(?:inner[-_]*)?(?:body|content|text)(?![a-z]|[-_]right)|body[-_]?content",
    re.IGNORECASE,
)
ROLES = frozenset(("navigation", "complementary", "contentinfo", "banner", "search", "dialog"))
END = re.compile(r"[.!?。！？…;；:：][\"'”’」』)）\]]*$")
# A line of a Chinese page that speaks of the page: its title elsewhere, who made it, what else to read, whose it is.
CREDIT = re.compile(
    r"[\s（(【\[]*(?:"
    r"(?:本文)?原标题[:：]|编辑\s\S{2,4}(?:\s校对.*)?$|"
    r"(?:责任|值班|实习|本文|执行)?(?:编辑|责编|编审|审核|校对|监制|制图|采写|撰文|供稿)\s?[:：|｜/／][^。]*$|"
    r"(?:文章|本文|资料|图片|信息|内容)?(?:来源|图源)\s?[:：|｜][^。]{0,30}$|"
    r"(?:图片|信息|内容|资料)均?来(?:自|源)于?[^。]{0,6}网络|"
    r"(?:特别|免责|版权|郑重)声明[:：]|版权所有|关键词\s*[:：>]|"
    r"(?:更多)?(?:推荐|相关|延伸|精彩)(?:阅读|新闻|资讯|内容|专题)[:：]?$|"
    r"(?:点击)?进入专题|相关(?:新闻|资讯)请关注|更多(?:猛料|精彩)|"
    r".{0,60}(?:(?:扫|按|关注).{0,12}二维码|二维码.{0,6}关注|ICP[备证]|公网安备)|"
    r".{0,60}未经(?:授权|许可|书面|允许).{0,10}(?:不得|禁止|请勿|谢绝))"
)
LONGEST_CREDIT = 400  # characters
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
HIDDEN = re.compile(r"<(?:!--|(script|style|svg)\b([^>]*)(?<!/)>)", re.IGNORECASE)
length = etree.XPath("string-length(normalize-space(.))")


class Passage(NamedTuple):
    """node: of the block it stands in. text: white space made single. linked: characters of it in links. tag: the
    innermost of ITEMS or HEADINGS around it, or the block's."""

    node: int
    text: str
    linked: int
    tag: str


@lru_cache(1 << 14)
def named(names: str) -> str:
    """ "body" or "surroundings" by an element's classes and id, or ""."""
    kinds = set(map(meaning, names.split()))
    return "body" if "body" in kinds else "surroundings" if "surroundings" in kinds else ""


@lru_cache(1 << 16)
def meaning(name: str) -> str:
    lower = name.lower()
    if BODY.search(lower):
        return "body"
    return "surroundings" if SURROUNDINGS.search(lower) else ""


class Page:
    """The blocks of a tree, numbered as they begin, and their passages.

    parents, ends: of each block its parent, and the first number after those within it.
    marks: "body" or "article" for those that say so, else "".
    classes: as they are written.

    Args:
        root: loses what is no text. tables: leave out those that have not most of the page.
    """

    def __init__(self, root: etree._Element, tables: bool = True):
        etree.strip_elements(root, *GONE, with_tail=False)
        self.parents: list[int] = []
        self.ends: list[int] = []
        self.marks: list[str] = []
        self.classes: list[str] = []
        self.passages: list[Passage] = []
        self.buffer: list[str] = []
        self.linked = 0
        self.total = length(root)
        self.tables = tables
        self.block(root, -1, "", "")

    def block(self, element: etree._Element, parent: int, tag: str, mark: str) -> None:
        node = len(self.parents)
        self.parents.append(parent)
        self.ends.append(0)
        self.marks.append(mark)
        self.classes.append(element.get("class", ""))
        self.inline(element, node, tag, False)
        self.flush(node, tag)
        self.ends[node] = len(self.parents)

    def inline(self, element: etree._Element, node: int, tag: str, link: bool) -> None:
        buffer = self.buffer
        if text := element.text:
            self.take(text, tag, link)
        for child in element:
            kind = child.tag
            if kind in BLOCKS:
                if buffer:
                    self.flush(node, tag)
                mark = self.mark(child)
                if mark != "surroundings":
                    inner = kind if kind in ITEMS or kind in HEADINGS or tag not in ITEMS else tag
                    self.block(child, node, inner, mark)
            elif kind == "br":
                following = child.getnext()
                if following is not None and following.tag == "br" and not (child.tail and child.tail.strip()):
                    self.flush(node, tag)
                else:
                    buffer.append("\n")
            else:
                if kind in ("td", "th"):
                    buffer.append(" ")
                if len(child):
                    self.inline(child, node, tag, link or kind == "a")
                elif text := child.text:
                    self.take(text, tag, link or kind == "a")
            if text := child.tail:
                self.take(text, tag, link)

    def take(self, text: str, tag: str, link: bool) -> None:
        if link:
            self.linked += len(text)
            self.buffer.append(text)
        elif self.buffer or tag == "pre" or not text.isspace():  # white space between blocks says nothing
            self.buffer.append(text)

    def flush(self, node: int, tag: str) -> None:
        if self.buffer:
            text = "".join(self.buffer)
            linked, self.linked = self.linked, 0
            self.buffer.clear()
            text = text.strip("\n") if tag == "pre" else " ".join(text.split())
            if text and not text.isspace():
                self.passages.append(Passage(node, text, min(linked, len(text)), tag))

    def mark(self, element: etree._Element) -> str:
        """ "body", "article", "surroundings" or ""."""
        tag = element.tag
        aside = tag in ASIDE
        if not aside and (attributes := dict(element.items())):
            name = named(f"{attributes.get('class', '')} {attributes.get('id', '')}")
            if name == "body" or attributes.get("itemprop") == "articleBody":
                return "body" if tag not in ITEMS and tag not in ("body", "main") else ""
            aside = bool(
                name
                or "hidden" in attributes
                or attributes.get("aria-hidden") == "true"
                or attributes.get("role") in ROLES
                or ("style" in attributes and "display:none" in attributes["style"].replace(" ", ""))
            )
        if tag in ("article", "main", "body", "html"):
            return "article" if tag == "article" else ""
        if tag == "table" and not self.tables:
            aside = True
        return "surroundings" if aside and length(element) <= 0.4 * self.total else ""

    def sums(self, weights: list[float]) -> list[float]:
        """Of each block, with all that is within it."""
        sums = [0.0] * len(self.parents)
        for passage, weight in zip(self.passages, weights):
            sums[passage.node] += weight
        for node in range(len(sums) - 1, 0, -1):
            sums[self.parents[node]] += sums[node]
        return sums

    def article(self) -> str:
        if not self.passages:
            return ""
        weights = self.weights()
        sums = self.sums(weights)
        best = max(range(len(sums)), key=lambda node: (sums[node], node))
        positive = [max(0.0, weight) for weight in weights]
        if sums[best] < 0.4 * sum(positive):  # a list, or verse: the smallest block with most of it
            shares = self.sums(positive)
            best = max(node for node, share in enumerate(shares) if share >= 0.7 * shares[0])
        best = self.marked(best, sums)
        return self.text(best, weights)

    def weights(self) -> list[float]:
        """Of each passage; one that was seen before elsewhere in the page counts against its place."""
        seen: dict[str, int] = {}
        weights = []
        for passage in self.passages:
            weight = weigh(passage)
            if len(passage.text) > 40:
                place = self.parents[passage.node]
                if seen.setdefault(passage.text, place) != place:
                    weight = -abs(weight)
            weights.append(weight)
        return weights

    def marked(self, best: int, sums: list[float]) -> int:
        """Within the best block, the first that is marked as the article, unless it is a small part; or else the best.

        A body in several parts, of one class and in one article, is the block around them.
        """
        within = range(best + 1, self.ends[best])
        for mark in ("body", "article"):
            if self.marks[best] == "body":
                break
            found = [node for node in within if self.marks[node] == mark and sums[node] >= 0.3 * sums[best]]
            if not found:
                continue
            node = found[0]
            if mark == "body":
                last = max(
                    n
                    for n in within
                    if (self.marks[n], self.classes[n], self.around(n))
                    == ("body", self.classes[node], self.around(node))
                )
                while self.ends[node] <= last:
                    node = self.parents[node]
            return node
        return best

    def around(self, node: int) -> int:
        """The nearest article that a block is in, or -1."""
        while node >= 0 and self.marks[node] != "article":
            node = self.parents[node]
        return node

    def text(self, best: int, weights: list[float]) -> str:
        """The passages of a block worth keeping, each on a line. A heading stays if such a one follows it."""
        kept: list[str] = []
        headings: list[str] = []
        for passage, weight in zip(self.passages, weights):
            if not best <= passage.node < self.ends[best]:
                continue
            if passage.tag in HEADINGS:
                if passage.tag != "h1":
                    headings.append(passage.text)
            elif weight > 0 or (
                passage.tag in ITEMS and weight > -len(passage.text) and 2 * passage.linked <= len(passage.text)
            ):
                if credit(passage.text):
                    continue
                kept += [*headings[-2:], passage.text]
                headings = []
        return "\n".join(kept)


def credit(text: str) -> bool:
    """Whether a passage speaks of the page and not of its subject."""
    return len(text) <= LONGEST_CREDIT and not text.isascii() and CREDIT.match(text) is not None


def weigh(passage: Passage) -> float:
    size = len(passage.text)
    own = (size - passage.linked) * (2.5 if WIDE.search(passage.text) else 1.0)
    if passage.tag in HEADINGS:
        return 0.0
    if own >= 80:
        return own - 0.5 * passage.linked
    if 2 * passage.linked > size:
        return -size
    if END.search(passage.text):
        return 0.5 * own
    return -0.1 * own if passage.tag in ITEMS else -0.5 * own


def tree(markup: str) -> etree._Element | None:
    """None where there is no element."""
    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, collect_ids=False
    )
    try:
        return etree.fromstring(without_scripts(markup.replace("\0", "")).encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:
        return None


def without_scripts(markup: str) -> str:
    """Without comments, styles, drawings and scripts other than linked data: half of most pages, which need not be
    parsed. A drawing within another is left to the parser.
    """
    kept: list[str] = []
    position = after = 0
    while found := HIDDEN.search(markup, position):
        name = found[1]
        end = markup.find(f"</{name}" if name else "-->", found.end())
        if name in ("svg", "SVG") and (end < 0 or markup.find(f"<{name}", found.end(), end) >= 0):
            position = found.end()
            continue
        if end < 0:
            break
        position = markup.find(">", end) + 1 or len(markup)
        if not name or "ld+json" not in found[2]:
            kept.append(markup[after : found.start()])
            after = position
    kept.append(markup[after:])
    return "".join(kept)
