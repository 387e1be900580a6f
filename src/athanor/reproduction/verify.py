"""Rerun every recorded result that is small enough, and say which no longer come out as they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from athanor import catalog
from athanor.errors import UserError
from athanor.progress import Progress, clock
from athanor.reproduction import rerun
from athanor.reproduction.record import SUFFIX, read

MINUTES = 30.0  # of a result that is at demo scale


class Row(NamedTuple):
    """One result: what to show of it, and its share in the exit code."""

    name: str
    verdict: str  # one of `rerun`, or "skipped", or "failed"
    detail: str
    seconds: float


def results(names: Sequence[str] = ()) -> list[Path]:
    """All result files, or those of these experiments (`pretrain/` for all below)."""
    folder = catalog.source() / "experiments"
    found = sorted(folder.rglob(f"*{SUFFIX}"))
    if not names:
        return found
    chosen: dict[Path, None] = {}
    for name in names:
        below = (
            [path for path in found if path.relative_to(folder).as_posix().startswith(name)] if name[-1:] == "/" else []
        )
        chosen |= dict.fromkeys(below or [rerun.find(name)])
    return list(chosen)


def verify(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    minutes: float = MINUTES,
    first: bool = False,
    tolerance: float = rerun.TOLERANCE,
    progress: Callable[[], Progress],
) -> Iterator[Row]:
    """Rerun them one after another; one that cannot be rerun does not stop the rest.

    Args:
        minutes: results that took longer, all seeds together, are passed over.
        first: only the first seed of each.
    """
    for path in paths:
        name = path.name.removesuffix(SUFFIX)
        try:
            recorded = read(path)
            name, seconds = recorded["experiment"], recorded.get("seconds", 0.0)
            if first:
                seconds /= len(recorded["runs"])
            if seconds > 60 * minutes:
                yield Row(name, "skipped", f"took {clock(seconds)}; --minutes {seconds / 60:.0f} reruns it too", 0.0)
                continue
            with progress() as shown:
                result = rerun.reproduce(path, overrides, tolerance=tolerance, first=first, progress=shown)
        except Exception as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            yield Row(name, "failed", told if isinstance(error, UserError) else f"{type(error).__name__}: {told}", 0.0)
            continue
        worst = [seed for seed in result.seeds if seed.verdict == result.verdict]
        detail = result.problems[0] if result.problems else worst[0].text
        yield Row(name, result.verdict, detail, result.seconds)


def exit_code(rows: Sequence[Row]) -> int:
    """0 all bit-identical, 3 some only within tolerance, 1 some different, with changed inputs, or failed."""
    codes = {rerun.EXIT_CODES.get(row.verdict, 0 if row.verdict == "skipped" else 1) for row in rows}
    return 1 if 1 in codes else max(codes, default=0)
