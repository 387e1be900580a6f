"""Hold a resolved config against the constructors that it names. Nothing is built and torch stays unimported.

All problems are found in one pass, each a sentence: an unknown key with the nearest one, a missing key, a value of the
wrong type, an unset ???, a target that does not exist or lies outside the allowed packages.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from athanor import schema
from athanor.catalog import suggest
from athanor.signatures import NotFoundError, Opaque, Parameter, Signature, signature

ALLOWED = ("athanor", "torch", "lightning", "torchmetrics")
UNRESOLVED = "<unresolved>"  # stands for a value whose problem is told elsewhere; it suits every annotation
SPECIAL = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
# What the training program itself hands to a node's constructor.
SUPPLIED = {"algorithm": {"model", "optimizer", "schedule"}}


def check(
    config: Mapping[str, Any], *, execution: tuple[str, ...] = (), variables: frozenset[str] = frozenset()
) -> list[str]:
    """Every problem of a config as plain dicts and lists; [] if it can be built.

    Args:
        execution: the keys whose groups `schema` describes.
        variables: top-level keys that interpolations refer to: they may be there though `schema` has no such key.
    """
    own = signature(f"{schema.__name__}.{config.get('kind')}") if config.get("kind") in _KINDS else None
    parameters = dict(signature(f"{schema.__name__}.experiment").parameters)
    if own is not None:
        parameters |= own.parameters
        optional = {"strategy", "checkpoint"} & set(config) - set(parameters)
        parameters |= {key: Parameter(Any, False) for key in variables | optional if key not in parameters}
    allowed = (*ALLOWED, *(config.get("allowed_targets") or ()))
    problems = list(_arguments(config, Signature(parameters, own is None, ""), "the experiment", "", set()))
    for key, value in config.items():
        if key in execution and isinstance(value, dict) and "_target_" not in value and hasattr(schema, key):
            problems += _arguments(value, signature(f"{schema.__name__}.{key}"), key, key, set())
            if key == "cluster" and isinstance(value.get("slurm"), dict):
                slurm = signature(f"{schema.__name__}.slurm")
                problems += _arguments(value["slurm"], slurm, "cluster.slurm", "cluster.slurm", set())
        else:
            problems += _nodes(value, key, allowed)
    return list(dict.fromkeys(problems))


_KINDS = ("prepare", "train", "evaluate")


def _nodes(value: Any, path: str, allowed: tuple[str, ...]) -> Iterator[str]:
    """Problems of every node at and below `path`."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unset(item, f"{path}.{i}")
            yield from _nodes(item, f"{path}.{i}", allowed)
    elif isinstance(value, dict):
        if "_target_" in value:
            yield from _node(value, path, allowed)
        else:
            for key, item in value.items():
                yield from _unset(item, f"{path}.{key}")
        for key, item in value.items():
            yield from _nodes(item, f"{path}.{key}", allowed)


def _node(node: dict[str, Any], path: str, allowed: tuple[str, ...]) -> Iterator[str]:
    target = node["_target_"]
    if not isinstance(target, str) or target == "???":
        yield f"{path}._target_ is unset: name the class or function to call"
        return
    if not _within(target, allowed):
        packages = ", ".join(allowed)
        yield f"{path}: {target} lies outside the allowed packages ({packages}); add its package to allowed_targets"
        return
    try:
        found = signature(target)
    except NotFoundError as error:
        yield f"{path}: there is no {target}: {error}{suggest(error.missing, error.near)}"
        return
    except TypeError as error:
        yield f"{path}: {error}"
        return
    if not _within(found.origin, allowed):
        yield f"{path}: {target} comes from {found.origin}, outside the allowed packages"
        return
    yield from _arguments(node, found, target, path, SUPPLIED.get(path, set()))


def _arguments(given: Mapping[str, Any], found: Signature, owner: str, path: str, supplied: set[str]) -> Iterator[str]:
    """Problems of the keys of one mapping as the arguments of one signature."""
    prefix = f"{path}." if path else ""
    positional = list(found.parameters)[: len(given.get("_args_") or ())]
    for key, value in given.items():
        if key in SPECIAL and "_target_" in given:
            continue
        if key not in found.parameters:
            if not found.open:
                yield f"{prefix}{key}: {owner} has no {key!r}{suggest(key, found.parameters)}"
        elif key in supplied:
            yield f"{prefix}{key}: {owner} is given {key!r} by the program; remove it"
        elif value == "???":
            yield from _unset(value, f"{prefix}{key}")
        elif not _fits(value, annotation := found.parameters[key].annotation):
            yield f"{prefix}{key} is {_shown(value)}, but {owner} takes {describe(annotation)}"
    if given.get("_partial_") is True:
        return
    for key, parameter in found.parameters.items():
        if parameter.required and key not in given and key not in supplied and key not in positional:
            yield f"{prefix}{key} is missing: {owner} needs it ({describe(parameter.annotation)})"


def _unset(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and value == "???":
        yield f"{path} is unset (???): give it a value, `{path}=...`"


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


_SEQUENCES: tuple[Any, ...] = (
    *(list, set, frozenset, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable),
    *(collections.abc.Collection, collections.abc.Set, collections.abc.Iterator),
)
_MAPPINGS: tuple[Any, ...] = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value suits an annotation: an int is a float, a bool is neither, a node may be anything."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    base = origin or annotation
    if isinstance(value, dict) and "_target_" in value:
        return True
    if (
        value == UNRESOLVED
        or annotation is Any
        or annotation is object
        or isinstance(annotation, (str, typing.TypeVar))
    ):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if origin is typing.Union or isinstance(annotation, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if base is bool:
        return isinstance(value, bool)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if base is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is str:
        return isinstance(value, str)
    if isinstance(base, type) and (issubclass(base, PurePath) or base.__name__ == "PathLike"):
        return isinstance(value, str)
    if base is tuple:
        if not isinstance(value, list):
            return False
        if not arguments:
            return True
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if base in _SEQUENCES:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value if arguments)
    if base in _MAPPINGS:
        return isinstance(value, dict) and (
            len(arguments) != 2 or all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
        )
    if base in (collections.abc.Callable, type) or (isinstance(base, type) and issubclass(base, Opaque)):
        return False
    if isinstance(base, type) and base.__module__.partition(".")[0] in ALLOWED:
        return issubclass(base, (str, int, float, tuple)) or hasattr(base, "__members__")
    return True


def describe(annotation: Any) -> str:
    """An annotation as a reader says it: `int or None`, `one of 'a', 'b'`, `a list of str`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    base = origin or annotation
    if annotation is None or annotation is type(None):
        return "null"
    if annotation is Any:
        return "any value"
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if origin is typing.Union or isinstance(annotation, types.UnionType):
        return " or ".join(map(describe, arguments))
    if base is tuple and arguments:
        if arguments[-1] is Ellipsis:
            return f"a list of {describe(arguments[0])}"
        return f"a list of {len(arguments)}: {', '.join(map(describe, arguments))}"
    if base in _SEQUENCES or base is tuple:
        return f"a list of {describe(arguments[0])}" if arguments and arguments[0] is not Any else "a list"
    if base in _MAPPINGS:
        return "a mapping"
    if base in (collections.abc.Callable, type):
        return "a node with _target_ (and _partial_)"
    if isinstance(base, type) and issubclass(base, Opaque):
        return f"a node with _target_ ({base.__name__})"
    return getattr(base, "__name__", str(base))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    kinds = {dict: "mapping"}
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kinds.get(type(value), type(value).__name__)})"
