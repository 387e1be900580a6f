"""Documented objects of Python source text, read with `ast`: nothing is run, and `python -OO` changes nothing."""

import ast
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple


class Docstring(NamedTuple):
    """kind: what is documented. name: dotted, from the module on. signature: "(a, b=1)" of a function, "" of others."""

    kind: Literal["module", "class", "function"]
    name: str
    signature: str
    text: str


def docstrings(source: str, module: str) -> Iterator[Docstring]:
    """In the order of the text; objects inside functions are left out.

    Raises:
        SyntaxError, ValueError: the source does not parse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like, in files that are not ours
        tree = ast.parse(source)
    if text := ast.get_docstring(tree):
        yield Docstring("module", module, "", text)
    yield from members(tree, module)


def members(node: ast.AST, prefix: str) -> Iterator[Docstring]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = f"{prefix}.{child.name}"
            if text := ast.get_docstring(child):
                yield Docstring("class", name, "", text)
            yield from members(child, name)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(child):
                yield Docstring("function", f"{prefix}.{child.name}", f"({ast.unparse(child.args)})", text)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from members(child, prefix)
