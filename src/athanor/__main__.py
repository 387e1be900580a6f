"""`python -m athanor` is `athanor`."""

from athanor.cli import run

run()
