"""Postal addresses, which no checksum proves: found by the form they have in China, the US and Britain.

A Chinese address is known by the number of a house after the name of a road, a village or an estate, and reaches left
to the first of the administrative divisions that lead to it; those are in python-stdnum's list (GB/T 2260). Without a
division a road must be called one. An English address is a number, capitalised words, a street's suffix, and what may
follow: a unit, a city, a state or a postcode. So a house without a number, and a village by its name alone, stay.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

HAN = "\u3400-\u4dbf\u4e00-\u9fff"
COUNT = "[一二三四五六七八九十百零〇两]"
NUMBER = rf"(?:\d{{1,5}}(?:[-之]\d{{1,4}})?|{COUNT}{{1,5}})"
ROADS = "大道|大街|胡同|[路街巷弄]"
PLACES = f"{ROADS}|花园|小区|公寓|大厦|家园|新村|公馆|广场|[道里条村庄屯组园苑院区镇乡]"
HOUSE = "(?:号楼|号院|[号號栋幢座弄](?![线線码碼文选種种手人机令位]))"
ROOM = (
    rf"(?:[第附]?[A-Za-z甲乙丙丁东西南北]? ?(?:\d{{1,5}}(?:-\d{{1,4}}){{0,2}}|{COUNT}{{1,4}}|[A-Za-z])? ?"
    "(?:号楼|号院|单元|單元|支弄|[栋幢座塔楼樓层層室户房号號院弄梯]))"
)
ESTATE = f"(?: ?[{HAN}]{{2,10}}?(?:大厦|大廈|广场|公寓|花园|小区|中心|大楼|家园|新村|宿舍|国际|苑))"
ZIP_ZH = r"(?:[ ,;]{0,2}(?:\(?邮编|邮政编码)?[: ]{0,2}\d{6}\)?(?!\d))"
CHINESE = re.compile(
    rf"(?P<before>(?:[{HAN}·]|(?<=[{HAN}])\d{{1,2}}(?=[{HAN}])){{1,40}}?(?P<place>{PLACES})"
    rf"(?:[东西南北中]?{COUNT}?[段区期]|[东西南北])?) ?(?P<house>(?:{NUMBER} ?|[A-Za-z](?=座)){HOUSE})"
    rf"(?:{ESTATE}| ?{ROOM}){{0,6}}(?:(?<=[栋幢座楼层室元])-?\d{{3,4}}(?![\d年元]))?{ZIP_ZH}?"
)
# No name has these; and a road that no division leads to has none of the others: "我在中山路1号" begins with 中.
STOP = re.compile("[我你您他她它们的了着是有在到至于从往去来住为把被这那哪某每]|地址|住址|公司")
WORDS = re.compile(f"{STOP.pattern}|[过位条各与及或而就也都又还很请向朝达给对离近]|和(?!平|谐|田|县|顺|龙|硕|静|布|政)")
GENERIC = re.compile(
    rf"(?:[{HAN}]{{2,4}}[省市])?(?:[{HAN}]{{1,4}}[区區县縣市])?(?:[{HAN}]{{1,5}}[镇鎮乡鄉])?[{HAN}\d]{{1,8}}"
)
LONGEST = 40  # characters before the number of a house that are looked at

SUFFIXES = (
    "Avenue|Ave|Boulevard|Blvd|Circle|Cir|Close|Court|Ct|Crescent|Cres|Drive|Dr|Expressway|Expy|Gardens|Grove|Highway"
    "|Hwy|Lane|Ln|Mews|Parkway|Pkwy|Place|Pl|Plaza|Road|Rd|Row|Square|Sq|Street|St|Terrace|Ter|Trail|Trl|Turnpike|Way"
)
# Suffixes of the Postal Service (Publication 28, C1) that are words or names as well: only with a unit or a state.
RARE = (
    "Alley|Bend|Bluffs?|Bridge|Brooks?|Burgs?|Bypass|Camp|Canyon|Cape|Causeway|Centers?|Cliffs?|Club|Common|Corners?"
    "|Course|Coves?|Creek|Crest|Crossing|Crossroads?|Curve|Dale|Dam|Divide|Estates?|Extensions?|Falls?|Ferry|Fields?"
    "|Flats?|Fords?|Forest|Forges?|Forks?|Fort|Freeway|Gateway|Glens?|Greens?|Groves|Harbors?|Haven|Heights|Hills?"
    "|Hollow|Inlet|Islands?|Isle|Junctions?|Keys?|Knolls?|Lakes?|Land|Landing|Lights?|Loaf|Locks?|Lodge|Loop|Mall"
    "|Manors?|Meadows?|Mill|Mills|Mission|Motorway|Mount|Mountains?|Neck|Orchard|Oval|Overpass|Parks?|Parkways|Pass"
    "|Passage|Path|Pike|Pines?|Plains?|Points?|Ports?|Prairie|Radial|Ramp|Ranch|Rapids?|Rest|Ridges?|River|Route|Rue"
    "|Run|Shoals?|Shores?|Skyway|Springs?|Spurs?|Squares|Station|Stravenue|Stream|Streets|Summit|Throughway|Trace"
    "|Track|Trafficway|Tunnel|Underpass|Unions?|Valleys?|Viaduct|Views?|Villages?|Ville|Vista|Walks?|Wall|Ways|Wells?"
)  # fmt: skip
STATES = (
    "A[KLPRSZ]|AA|AE|C[AOT]|D[CE]|F[LM]|G[AU]|HI|I[ADLN]|K[SY]|LA|M[ADEHINOPST]|N[CDEHJMVY]|O[HKR]|P[ARW]|RI|S[CD]"
    "|T[NX]|UT|V[AIT]|W[AIVY]|Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia"
    "|Hawaii|Idaho|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota"
    "|Mississippi|Missouri|Montana|Nebraska|Nevada|New (?:Hampshire|Jersey|Mexico|York)|(?:North|South) (?:Carolina"
    "|Dakota)|Ohio|Oklahoma|Oregon|Pennsylvania|Rhode Island|Tennessee|Texas|Utah|Vermont|(?:West )?Virginia"
    "|Washington|Wisconsin|Wyoming"
)
WORD = r"(?:[A-Z][\w'’.-]{0,24}|\d{1,3}(?:st|nd|rd|th|ST|ND|RD|TH)|of|the|de|la)"
UNIT = (
    r"(?:,?\s{1,2}(?:(?:Apt|Apartment|Suite|Ste|Unit|Floor|Fl|Flat|Room|Rm)(?![A-Za-z])\.?\s?#?|#\s?)"
    r"[0-9A-Za-z][0-9A-Za-z-]{0,8})"
)
CITY = r"[A-Z][\w'’.-]{1,24}(?: [A-Z][\w'’.-]{1,24}){0,3}"
POSTCODE = r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"
ZIP = rf"(?:{STATES})(?![A-Za-z])\.?(?:,?\s{{1,2}}\d{{5}}(?:-\d{{4}})?(?!\d))?"
TOWN = rf"(?:,?\s{{1,2}}{CITY},?\s{{1,2}}(?:{ZIP}|{POSTCODE})(?![0-9A-Za-z]))"
CODED = (
    rf"(?:,?\s{{1,2}}{CITY},?\s{{1,2}}(?:(?:{STATES}),?\s{{1,2}}\d{{5}}(?:-\d{{4}})?(?!\d)|{POSTCODE}(?![0-9A-Za-z])))"
)
SIDE = r"(?:\s(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)(?![A-Za-z])\.?)"
BEGIN = r"(?<![0-9A-Za-z_$€£#.,/-])(?<!\d )"
FLAT = r"(?:(?<![A-Za-z])(?:Flat|Studio|Apartment|Apt|Unit|Suite|Room)\.?\s\w{1,5},?\s)"
ENGLISH = re.compile(
    rf"(?P<flat>{FLAT})?{BEGIN}(?P<number>\d{{1,6}}(?:-\d{{1,4}})?[A-Za-z]?)\s(?:{WORD}\s){{1,4}}?"
    rf"(?:(?:{SUFFIXES})(?![A-Za-z])\.?{SIDE}?(?P<more>{UNIT}?{TOWN}?)|(?:{RARE})(?![A-Za-z])\.?{SIDE}?(?P<rare>{UNIT}{TOWN}?|{TOWN}))"
)
# What a state with a code, or a postcode, proves without a suffix.
PROVEN = re.compile(
    rf"(?:{FLAT}(?:\d{{1,6}}[A-Za-z]?\s)?|{BEGIN}(?:\d{{1,6}}(?:-\d{{1,4}})?[A-Za-z]?|One|Two|Three)\s)(?:{WORD}\s){{0,3}}{WORD}{UNIT}?{CODED}"
)
SHIP = r"(?:USS|USNS|USNV|USCGC)\s[A-Z][a-z]+"
BOX = re.compile(
    rf"(?<![0-9A-Za-z_])(?:(?:P\.?\s?O\.?\s?Box|PSC|Unit)\s\d{{1,6}}(?:,?\sBox\s\d{{1,6}})?|{SHIP})(?P<town>{TOWN})?"
)
YEAR = re.compile(r"(?:1[5-9]|20)\d\d")


def addresses(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each, in a text whose digits and marks are ASCII."""
    for match in CHINESE.finditer(text):
        start = beginning(
            text[max(match.start(), match.start("house") - LONGEST) : match.start("house")], match["place"]
        )
        if start is not None:
            yield match.start("house") - start, match.end()
    yield from (match.span() for match in PROVEN.finditer(text))
    for match in ENGLISH.finditer(text):
        if (
            match["flat"] or match["more"] or match["rare"] or not YEAR.fullmatch(match["number"])
        ):  # the 1929 Wall Street crash
            yield match.span()
    for match in BOX.finditer(text):
        if match["town"] or re.match(r"P\W?\s?O", match[0]):
            yield match.span()


def beginning(before: str, place: str) -> int | None:
    """How many characters at the end of `before`, all that leads to a house's number, are its address; None: none."""
    names, longest = divisions()
    for start in range(len(before)):
        end = start
        while found := next((n for n in range(longest, 1, -1) if before[end : end + n] in names), 0):
            end += found
        if end > start and not STOP.search(before, end):
            return len(before) - start
    if not re.fullmatch(ROADS, place):
        return None
    last = max((match.end() for match in WORDS.finditer(before)), default=0)
    name = before[last:].strip()
    # A road's own name is more than its last word, and no more than generic divisions and it.
    return len(name) if len(name) > len(place) + (name[-len(place) :] == place) and GENERIC.fullmatch(name) else None


@cache
def divisions() -> tuple[set[str], int]:
    """The names of China's provinces, prefectures and counties, and the length of the longest."""
    text = files("stdnum.cn").joinpath("loc.dat").read_text("utf-8")
    names: set[str] = set()
    for entry in re.findall(r'="([^"]+)"', text):
        names.update(re.sub(r"\[[^]]*\]", "", name) for name in entry.split(","))
    names -= {"市辖区", "县", "省直辖县级行政区划", "自治区直辖县级行政区划"}
    provinces = {name for name in names if name.endswith(("省", "自治区", "特别行政区"))}
    names |= {re.sub("(?:省|(?:维吾尔|壮族|回族)?自治区|特别行政区)$", "", name) for name in provinces}
    names |= {"北京", "上海", "天津", "重庆", "香港", "澳门"}
    names |= {name[:-1] for name in names if name.endswith("市") and len(name) > 2}
    return {name for name in names if len(name) > 1}, max(map(len, names))
