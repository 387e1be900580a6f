"""The lineage as a layered drawing (Sugiyama et al. 1981): inputs on the left, what was made from them to the right.

Layers by longest path, dummy nodes on long edges, order within a layer by barycentres, then heights relaxed towards the
neighbours' under a minimum distance. Edges that a longer path implies are not drawn.
"""

from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

from athanor.report.formats import duration, shorten

WIDTH, HEIGHT = 118, 58
GAP_X, GAP_Y = 20, 20
DUMMY = 16


class Node(NamedTuple):
    key: str
    name: str
    mark: str  # the short fingerprint
    note: str  # "4.1 s", "11.4 MB in 212 files"
    tone: str
    parents: tuple[str, ...]
    badge: str = ""
    hint: str = ""
    status: str = "finished"


class Placed(NamedTuple):
    node: Node
    x: float
    y: float


class Layout(NamedTuple):
    nodes: dict[str, Placed]
    edges: list[tuple[str, str, list[tuple[float, float]]]]  # parent, child, points the edge passes on its way
    width: float
    height: float


def reduce(nodes: list[Node]) -> dict[str, list[str]]:
    """Parents of each node, without those that are also reached through another parent."""
    parents = {node.key: list(dict.fromkeys(node.parents)) for node in nodes}
    parents = {key: [p for p in given if p in parents and p != key] for key, given in parents.items()}
    above: dict[str, set[str]] = {}

    def ancestors(key: str, path: tuple = ()) -> set[str]:
        if key not in above:
            found = set()
            for parent in parents[key]:
                if parent not in path:
                    found |= {parent} | ancestors(parent, (*path, key))
            above[key] = found
        return above[key]

    return {
        key: [p for p in given if not any(p in ancestors(other) for other in given if other != p)]
        for key, given in parents.items()
    }


def layout(nodes: list[Node]) -> Layout:
    parents = reduce(nodes)
    layer: dict[str, int] = {}
    for node in nodes:  # inputs come first in `nodes`
        layer[node.key] = 1 + max((layer.get(p, -1) for p in parents[node.key]), default=-1)
    children: dict[str, list[str]] = {key: [] for key in parents}
    for key, given in parents.items():
        for parent in given:
            children[parent].append(key)
    for node in reversed(nodes):  # a source stands just before its first use, not at the far left
        if not parents[node.key] and children[node.key]:
            layer[node.key] = min(layer[c] for c in children[node.key]) - 1
    columns: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in nodes:
        columns[layer[node.key]].append(node.key)
    up: dict[str, list[str]] = {key: [] for key in parents}
    chains: dict[tuple[str, str], list[str]] = {}
    for key, given in parents.items():
        for parent in given:
            chain = [f"{parent}>{key}@{depth}" for depth in range(layer[parent] + 1, layer[key])]
            for depth, dummy in enumerate(chain, layer[parent] + 1):
                columns[depth].append(dummy)
            links = [parent, *chain, key]
            chains[parent, key] = chain
            for before, after in pairwise(links):
                up.setdefault(after, []).append(before)
    down: dict[str, list[str]] = {}
    for after, befores in up.items():
        for before in befores:
            down.setdefault(before, []).append(after)

    for sweep in range(12):
        order = {key: i for column in columns for i, key in enumerate(column)}
        forward = sweep % 2 == 0
        near = up if forward else down
        for column in columns if forward else reversed(columns):
            weight = {
                key: sum(order[n] for n in near[key]) / len(near[key]) if near.get(key) else order[key]
                for key in column
            }
            column.sort(key=lambda key: weight[key])
            order.update({key: i for i, key in enumerate(column)})

    tall: dict[str, float] = {key: HEIGHT if key in parents else DUMMY for column in columns for key in column}
    y: dict[str, float] = {}
    for column in columns:
        at = 0.0
        for key in column:
            y[key] = at + tall[key] / 2
            at += tall[key] + GAP_Y
    for sweep in range(40):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = {}
            for key in column:
                near_by = [*up.get(key, []), *down.get(key, [])]
                wanted[key] = sum(y[n] for n in near_by) / len(near_by) if near_by else y[key]
            _settle(column, wanted, tall, y)
    top = min((y[k] - tall[k] / 2 for k in y), default=0.0)
    bottom = max((y[k] + tall[k] / 2 for k in y), default=0.0)
    placed = {
        node.key: Placed(node, layer[node.key] * (WIDTH + GAP_X) + 1, y[node.key] - HEIGHT / 2 - top + 1)
        for node in nodes
    }
    edges = []
    for (parent, child), chain in chains.items():
        points = [
            (depth * (WIDTH + GAP_X) + WIDTH / 2, y[dummy] - top + 1)
            for depth, dummy in enumerate(chain, layer[parent] + 1)
        ]
        edges.append((parent, child, points))
    return Layout(placed, edges, len(columns) * (WIDTH + GAP_X) - GAP_X + 2, bottom - top + 2)


def _settle(column: list[str], wanted: dict[str, float], tall: dict[str, float], y: dict[str, float]) -> None:
    """Puts a column at its wanted heights in least squares, order and distances kept (pool adjacent violators)."""
    offset, offsets = 0.0, []
    for before, after in zip([None, *column], column):
        offset += 0 if before is None else (tall[before] + tall[after]) / 2 + GAP_Y
        offsets.append(offset)
    blocks: list[list[float]] = []  # mean, size
    for key, shift in zip(column, offsets):
        blocks.append([wanted[key] - shift, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    means = [mean for mean, size in blocks for _ in range(int(size))]
    for key, shift, mean in zip(column, offsets, means):
        y[key] = mean + shift


def draw(nodes: list[Node]) -> Markup:
    """The SVG; each node carries its ancestors in `data-from`, so that pointing at it can light them."""
    if not nodes:
        return Markup("")
    placed = layout(nodes)
    above = _ancestors(nodes)
    parts = [
        f'<svg class="lineage" width="{placed.width:.0f}" height="{placed.height:.0f}" '
        f'viewBox="0 0 {placed.width:.0f} {placed.height:.0f}" role="img" aria-label="Lineage graph">'
    ]
    for parent, child, points in placed.edges:
        a, b = placed.nodes[parent], placed.nodes[child]
        stops = [(a.x + WIDTH, a.y + HEIGHT / 2), *points, (b.x, b.y + HEIGHT / 2)]
        parts.append(f'<path class="edge" data-edge="{escape(parent)} {escape(child)}" d="{_curve(stops)}"/>')
    for key, (node, x, y) in placed.nodes.items():
        state = "" if node.status == "finished" else " unfinished"
        source = " source" if node.tone == "raw" else ""
        parts.append(
            f'<g class="node tone-{escape(node.tone)}{state}{source}" data-node="{escape(key)}" '
            f'data-from="{escape(" ".join(sorted(above[key])))}" transform="translate({x:.1f} {y:.1f})">'
            f"<title>{escape(node.hint or node.name)}</title>"
            f'<rect class="body" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
            f'<rect class="bar" x="0" y="10" width="3" height="{HEIGHT - 20}" rx="1.5"/>'
            f'<text class="name" x="13" y="22">{escape(shorten(node.name, 16))}</text>'
            f'<text class="mark" x="13" y="42">{escape(node.mark)}</text>'
            f'<text class="note" x="{WIDTH - 10}" y="42" text-anchor="end">{escape(node.note)}</text>'
        )
        if node.badge:
            wide = 7.2 * len(node.badge) + 10
            parts.append(
                f'<rect class="badge" x="{WIDTH - wide - 6:.1f}" y="-8" width="{wide:.1f}" height="17" rx="8.5"/>'
                f'<text class="badge-text" x="{WIDTH - 6 - wide / 2:.1f}" y="4.2" text-anchor="middle">'
                f"{escape(node.badge)}</text>"
            )
        parts.append("</g>")
    return Markup("".join([*parts, "</svg>"]))


def _ancestors(nodes: list[Node]) -> dict[str, set[str]]:
    above: dict[str, set[str]] = {}
    for node in nodes:  # inputs come first
        above[node.key] = set().union(*({p} | above.get(p, set()) for p in node.parents)) if node.parents else set()
    return above


def _curve(stops: list[tuple[float, float]]) -> str:
    path = f"M{stops[0][0]:.1f} {stops[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(stops):
        middle = (x0 + x1) / 2
        path += f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    return path


def note(seconds: float | None) -> str:
    """A duration that fits a node: "4.1 s", "12 min"."""
    text = duration(seconds)
    return text.split(" min")[0] + " min" if " min" in text and "h" not in text else text
