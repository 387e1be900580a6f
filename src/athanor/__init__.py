"""Athanor: raw text to an aligned, evaluated language model, with a lineage for every number."""

__version__ = "0.1.0"
