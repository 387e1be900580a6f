"""Fills a template of this folder: one self-contained page, its style and script inside, all text escaped."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from athanor import __version__
from athanor.report import formats

FILTERS = ("number", "p_value", "measure", "signed", "whole", "count", "size", "duration", "date", "series", "shorten",
           "tidy", "power")  # fmt: skip
LANGUAGE_TAGS = {"zh": "zh-Hans"}


HERE = Path(__file__).parent


def fill(template: str, context: dict[str, Any], folder: Path = HERE) -> str:
    """The page. `folder`: of the template; what it extends may be here."""
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    context = {"style": style, "script": script, "version": __version__} | context
    return environment(folder).get_template(template).render(context).strip() + "\n"


@cache
def environment(folder: Path) -> Environment:
    made = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(formats, name) for name in FILTERS}
    made.filters["lang"] = lambda language: LANGUAGE_TAGS.get(language, language or "und")
    return made
