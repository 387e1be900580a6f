"""Numbers and times as a person reads them."""

import math
import re
from datetime import datetime, timezone

MISSING = "–"  # an en dash


def _known(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits; two and an exponent below 0.001 and from a million on."""
    if value is None or not _known(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{min(places, 4)}f}".replace("-", "−")


def p_value(p: float) -> str:
    """Three digits, never 0."""
    if not math.isfinite(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def measure(value: float | None, unit: str | None = None) -> str:
    """A metric's value in its unit: fractions as per cent."""
    if value is None or not _known(value):
        return MISSING
    return f"{100 * value:.1f}%".replace("-", "−") if unit == "fraction" else number(value)


def signed(value: float | None, unit: str | None = None) -> str:
    """A difference, with its sign; of fractions in percentage points."""
    if value is None or not _known(value):
        return MISSING
    size = abs(value)
    text = f"{100 * size:.1f}" if unit == "fraction" else f"{size:.4f}" if size < 1e-3 else number(size)
    if not text.strip("0.,"):
        return "±0"
    return ("+" if value > 0 else "−") + text


def whole(value: float | None) -> str:
    """1,234,567"""
    return MISSING if value is None or not _known(value) else f"{value:,.0f}"


def count(value: float | None) -> str:
    """1,234 up to ten thousand, then 12.3 k, 4.7 M, 1.2 G."""
    if value is None or not _known(value):
        return MISSING
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{0 if abs(scaled) >= 99.95 else 1}f} {letter}"
    return f"{value:,.0f}"


def power(value: int) -> str:
    """A power of two: 512, 1k, 64k, 2M."""
    for scale, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= scale:
            return f"{value // scale}{letter}"
    return str(value)


def size(octets: float | None) -> str:
    if octets is None or not _known(octets):
        return MISSING
    if octets < 1000:
        return f"{octets:,.0f} B"
    return f"{octets / 1000:.1f} kB" if octets < 10_000 else count(octets) + "B"


def duration(seconds: float | None) -> str:
    if seconds is None or not _known(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def date(moment: float | str | None) -> str:
    """A Unix time or ISO text as 2026-01-01 00:00 UTC."""
    if moment is None:
        return MISSING
    if isinstance(moment, str):
        return moment[:16].replace("T", " ")
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def series(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 2 else words)


def tidy(text: str) -> str:
    """For reading: no space at the ends, at most one blank line in a row, invisible characters as a middle dot."""
    visible = "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", visible.strip())


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
