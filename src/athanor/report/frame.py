"""Fills a template of this folder: one self-contained page, its style and script inside, all text escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from athanor import __version__
from athanor.report import formats

FILTERS = ("number", "p_value", "measure", "signed", "whole", "count", "size", "duration", "date", "series", "shorten",
           "tidy", "power")  # fmt: skip
LANGUAGE_TAGS = {"zh": "zh-Hans"}


def fill(template: str, context: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("athanor.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formats, name) for name in FILTERS}
    environment.filters["lang"] = lambda language: LANGUAGE_TAGS.get(language, language or "und")
    folder = Path(__file__).parent
    style, script = (Markup((folder / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    context = context | {"style": style, "script": script, "version": __version__}
    return environment.get_template(template).render(context).strip() + "\n"
