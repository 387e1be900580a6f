"""What the exchangeable parts of a Transformer share: its sizes, and how a part is written down.

A part (positions, attention, feed-forward, norm, dropout, initialisation) is a frozen dataclass of plain settings,
which checks itself when it is made; the Transformer asks it for modules or numbers once all parts are known to fit.
"""

import dataclasses
from typing import Any, NamedTuple


class Sizes(NamedTuple):
    width: int
    layers: int
    heads: int
    kv_heads: int
    channels: int  # of a head
    hidden: int
    context: int
    norm_eps: float


def node(part: Any) -> dict[str, Any]:
    """A part as the config node that makes it again; the `default` of `json.dumps`."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        raise TypeError(f"{part!r} is no part of a model")
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {"_target_": f"{type(part).__module__}.{type(part).__qualname__}", **fields}
