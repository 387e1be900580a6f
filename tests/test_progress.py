"""The progress display: plain lines in their time, a live table, time left, and nothing when quiet."""

from __future__ import annotations

import io

import pytest

from athanor import progress
from athanor.progress import Progress, clock


@pytest.fixture
def time(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_every_ten_seconds_with_speed_and_time_left(time):
    stream = io.StringIO()
    shown = Progress("plain", stream=stream)
    shown.start("pretrain")
    shown.stage("fit")
    for step in range(100, 126):
        shown.update(step, 200, loss=3.14159, tokens_per_second=8123.4)
        time[0] += 1
    shown.finish()
    assert stream.getvalue().splitlines() == [
        "pretrain · fit  110/200  loss 3.142  8,123 tokens/s  1:30 left",
        "pretrain · fit  120/200  loss 3.142  8,123 tokens/s  1:20 left",
        "pretrain finished after 26 s",
    ]


def test_a_new_stage_counts_anew(time):
    shown = Progress(quiet=True)
    shown.start("documents")
    shown.update(9, 10)
    shown.stage("deduplicate")
    shown.update(0, 50)
    time[0] += 5
    shown.update(10, 50)
    assert shown.current.left() == pytest.approx(20)


def test_the_live_table_shows_all_tasks(time):
    from rich.console import Console

    shown = Progress("quiet")
    shown.plan(["documents", "sft", "dpo"])
    shown.start("documents")
    shown.finish("skipped")
    shown.start("sft")
    shown.update(0, 10)
    time[0] += 30
    shown.update(5, 10, loss=0.5)
    console = Console(file=io.StringIO(), width=120)
    console.print(shown._table())
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert rows[0][:2] == ["✓", "documents"]
    assert rows[1][:2] == ["▶", "sft"]
    assert "5/10" in rows[1]
    assert rows[1][-5:] == ["30", "s", "30", "s", "left"]
    assert rows[2] == ["·", "dpo"]


def test_a_live_table_starts_and_stops_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(stream=stream) as shown:
        shown.start("sft")
        shown.update(1, 2)
        shown.finish()
    assert shown.mode == "rich"
    assert "sft" in stream.getvalue()


def test_large_numbers_are_short():
    shown = [progress._number(n) for n in (0.12345, 12, 12345, 234567, 7343901, 2.5e9, "x")]
    assert shown == ["0.1235", "12", "12,345", "234.6k", "7.344M", "2.5G", "x"]


def test_quiet_is_quiet(capsys):
    with Progress(quiet=True) as shown:
        shown.plan(["a"])
        shown.start("a")
        shown.update(1, 2)
        shown.finish("failed")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(9, "9 s"), (59.6, "1:00"), (65, "1:05"), (7384, "2:03:04")])
def test_clock(seconds, text):
    assert clock(seconds) == text
