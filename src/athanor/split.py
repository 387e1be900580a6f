"""On which side of a split something falls: a function of its content alone, whatever else there is."""

import hashlib


def held_out(key: str, fraction: float) -> bool:
    """True for about `fraction` of all keys. Adding others never moves a key across the split."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") < fraction * 2**64
