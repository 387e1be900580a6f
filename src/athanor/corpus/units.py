"""The unit in which texts are counted and compared: a word where spaces divide words, a character where they do not.

Chinese characters, kana and the like are one unit each, so that a rule stated in units means the same in Chinese and
English.
"""

import re

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff"  # radicals, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
UNIT = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+(?:['’][^\\W_{UNSPACED}]+)*")
UNSPACED_UNIT = re.compile(f"[{UNSPACED}]")


def units(text: str) -> list[str]:
    return UNIT.findall(text)


def ngrams(items: list[str], n: int) -> list[str]:
    """All runs of n items, joined by spaces; a shorter list is one run, an empty one is none."""
    if len(items) <= n:
        return [" ".join(items)] if items else []
    return list(map(" ".join, zip(*(items[start:] for start in range(n)))))
