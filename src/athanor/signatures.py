"""The signature of whatever a `_target_` names, read from its source without running it.

Importing torch and lightning takes ten seconds; parsing the two or three files that matter takes milliseconds. Names
are followed through re-exports, star imports, aliases and base classes. What the source leaves open is imported.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

LIGHT = {"typing", "typing_extensions", "collections.abc", "builtins", "pathlib", "os", "numbers"}
CLASS_DECORATORS = {"dataclass", "final", "deprecated", "runtime_checkable", "total_ordering"}
VALUE_BASES = {"Enum", "IntEnum", "StrEnum", "Protocol", "TypedDict", "str", "int", "float", "dict", "list", "tuple"}


class Opaque:
    """Stands for a class that no scalar is an instance of, such as Tensor or nn.Module."""


class Parameter(NamedTuple):
    annotation: Any  # a typing construct; Any where nothing is known
    required: bool


class Signature(NamedTuple):
    """Parameters that can be given by keyword, in the order of positions; `open` if any other keyword is taken too."""

    parameters: dict[str, Parameter]
    open: bool
    origin: str  # the module that defines it


class NotFoundError(LookupError):
    """No such target. `near` are the names that its last known parent has."""

    def __init__(self, missing: str, parent: str, near: list[str]) -> None:
        super().__init__(f"{parent} has no {missing!r}" if parent else f"there is no package {missing!r}")
        self.missing, self.near = missing, near


class _UnsettledError(Exception):
    """The source alone does not say."""


@functools.cache
def signature(target: str) -> Signature:
    """Signature of a dotted name.

    Raises:
        NotFoundError: there is no such module or attribute.
        TypeError: it is there and cannot be called.
    """
    try:
        module, names = _split(target)
        return _signature(*_locate(module, names))
    except (_UnsettledError, RecursionError, SyntaxError):
        return _imported(target)


# Modules, found and parsed but not imported


class _Module:
    def __init__(self, name: str, spec: ModuleSpec) -> None:
        self.name = name
        self.package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        if not spec.origin or not spec.origin.endswith(".py"):
            raise _UnsettledError
        self.bindings: dict[str, ast.AST] = {}
        self.stars: list[str] = []
        for node in _statements(ast.parse(Path(spec.origin).read_bytes()).body):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if not _decorated(node, {"overload"}):
                    self.bindings[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if alias.name == "*":
                        self.stars.append(self.absolute(node))
                    else:
                        self.bindings[alias.asname or alias.name] = node
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.bindings[alias.asname or alias.name.partition(".")[0]] = node
            elif isinstance(node, ast.Assign):
                for to in node.targets:
                    if isinstance(to, ast.Name):
                        self.bindings[to.id] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.bindings[node.target.id] = node

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a (relative) `from ... import` reads."""
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under if, try and with too; the first branch of several comes last and so wins."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
            yield from _statements(getattr(node, "orelse", []))
            yield from _statements(node.body)
        else:
            yield node


@functools.cache
def _spec(name: str) -> ModuleSpec | None:
    parent = name.rpartition(".")[0]
    if not parent:
        try:
            return importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
    above = _spec(parent)
    if above is None or above.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, list(above.submodule_search_locations))


@functools.cache
def _module(name: str) -> _Module:
    if (spec := _spec(name)) is None:
        raise _UnsettledError
    return _Module(name, spec)


def _split(target: str) -> tuple[str, list[str]]:
    """The longest beginning of a dotted name that is a module, and the rest."""
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        if all(parts) and _spec(".".join(parts[:end])):
            return ".".join(parts[:end]), parts[end:]
    raise NotFoundError(parts[0], "", [])


def _locate(module_name: str, names: list[str], depth: int = 0) -> tuple[_Module, ast.AST, list[str]]:
    """The module, class or function that defines `names`; a method's own name is left over."""
    if depth > 30:
        raise _UnsettledError
    module = _module(module_name)
    if not names:
        raise TypeError(f"{module_name} is a module and cannot be called")
    name, rest = names[0], names[1:]
    node = module.bindings.get(name)
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return module, node, rest
    if isinstance(node, ast.ImportFrom):
        alias = next(a for a in node.names if (a.asname or a.name) == name)
        return _attribute(module.absolute(node), [alias.name, *rest], depth)
    if isinstance(node, ast.Import):
        alias = next(a for a in node.names if (a.asname or a.name.partition(".")[0]) == name)
        return _attribute(alias.name if alias.asname else name, rest, depth)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        if node.value is not None and (dotted := _dotted(node.value)):
            return _locate(module_name, [*dotted, *rest], depth + 1)
        return module, node, rest
    if _spec(f"{module_name}.{name}"):
        return _locate(f"{module_name}.{name}", rest, depth + 1)
    for star in module.stars:
        try:
            return _attribute(star, names, depth)
        except NotFoundError:
            continue
    if "__getattr__" in module.bindings:
        raise _UnsettledError
    raise NotFoundError(name, module_name, [*(n for n in module.bindings if n[0] != "_"), *_submodules(module_name)])


def _attribute(module_name: str, names: list[str], depth: int) -> tuple[_Module, ast.AST, list[str]]:
    """As `_locate`, where the first names may be submodules that the module itself does not mention."""
    while (
        names
        and (spec := _spec(module_name))
        and spec.submodule_search_locations
        and (names[0] not in _module(module_name).bindings and _spec(f"{module_name}.{names[0]}"))
    ):
        module_name, names = f"{module_name}.{names[0]}", names[1:]
    return _locate(module_name, names, depth + 1)


def _submodules(name: str) -> list[str]:
    spec = _spec(name)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return [path.stem for folder in folders for path in folder.glob("[!_]*") if path.suffix == ".py" or path.is_dir()]


def version(target: str) -> int | None:
    """The number that a class gives as its own `version = N`, read from its source; None without one."""
    try:
        _, node, _ = _locate(*_split(target))
    except (NotFoundError, _UnsettledError, TypeError):
        return None
    for child in node.body if isinstance(node, ast.ClassDef) else ():
        names = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
        if any(isinstance(name, ast.Name) and name.id == "version" for name in names):
            value = getattr(child, "value", None)
            return value.value if isinstance(value, ast.Constant) and type(value.value) is int else None
    return None


# Signatures


def _signature(module: _Module, node: ast.AST, rest: list[str]) -> Signature:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not rest:
        return _function(module, node, bound=False)
    if isinstance(node, ast.ClassDef) and not rest:
        return _class(module, node)
    if isinstance(node, ast.ClassDef) and len(rest) == 1:
        owner, method = _method(module, node, rest[0])
        return _function(owner, method, bound=not _decorated(method, {"staticmethod"}))
    raise _UnsettledError


def _class(module: _Module, node: ast.ClassDef) -> Signature:
    decorators = {(_dotted(d.func if isinstance(d, ast.Call) else d) or ["?"])[-1] for d in node.decorator_list}
    if decorators - CLASS_DECORATORS:
        raise _UnsettledError
    if "dataclass" in decorators or any((_dotted(base) or [""])[-1] == "NamedTuple" for base in node.bases):
        return Signature(_fields(module, node), False, module.name)
    for name in ("__init__", "__new__"):
        try:
            owner, method = _method(module, node, name)
        except NotFoundError:
            continue
        return _function(owner, method, bound=True)._replace(origin=module.name)
    return Signature({}, False, module.name)


def _method(module: _Module, node: ast.ClassDef, name: str) -> tuple[_Module, ast.FunctionDef]:
    """The first definition in the class and then, depth first, in its bases."""
    for child in reversed(list(_statements(node.body))):
        if isinstance(child, ast.FunctionDef) and child.name == name and not _decorated(child, {"overload"}):
            return module, child
    for base in node.bases:
        dotted = _dotted(base.value if isinstance(base, ast.Subscript) else base)
        if dotted is None:
            raise _UnsettledError
        if dotted[-1] in {"object", "ABC", "Generic", "Protocol"}:
            continue
        try:
            owner, parent, rest = _locate(module.name, dotted)
        except NotFoundError as error:
            raise _UnsettledError from error
        if not isinstance(parent, ast.ClassDef) or rest or _decorated(parent, {"dataclass"}):
            raise _UnsettledError
        try:
            return _method(owner, parent, name)
        except NotFoundError:
            continue
    raise NotFoundError(name, node.name, [c.name for c in node.body if isinstance(c, ast.FunctionDef)])


def _fields(module: _Module, node: ast.ClassDef) -> dict[str, Parameter]:
    """The fields of a dataclass or NamedTuple, inherited ones first."""
    fields: dict[str, Parameter] = {}
    for base in reversed(node.bases):
        dotted = _dotted(base)
        if dotted is None or dotted[-1] == "NamedTuple":
            continue
        owner, parent, rest = _locate(module.name, dotted)
        if not isinstance(parent, ast.ClassDef) or rest:
            raise _UnsettledError
        if _decorated(parent, {"dataclass"}):
            fields |= _fields(owner, parent)
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            if "ClassVar" in ast.dump(child.annotation):
                continue
            if isinstance(child.value, ast.Call):
                keywords = {keyword.arg: keyword.value for keyword in child.value.keywords}
                if isinstance(init := keywords.get("init"), ast.Constant) and init.value is False:
                    continue
                required = _dotted(child.value.func) in (["field"], ["dataclasses", "field"]) and not (
                    {"default", "default_factory"} & set(keywords)
                )
            else:
                required = child.value is None
            fields[child.target.id] = Parameter(_type(module, child.annotation), required)
    return fields


def _function(module: _Module, node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> Signature:
    arguments = node.args
    parameters: dict[str, Parameter] = {}
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * first_default, *arguments.defaults, *arguments.kw_defaults]
    for i, (argument, default) in enumerate(zip([*positional, *arguments.kwonlyargs], defaults)):
        annotation = _type(module, argument.annotation)
        if isinstance(default, ast.Constant) and default.value is None:
            annotation = typing.Optional[annotation]  # noqa: UP045
        if not (bound and i == 0):
            parameters[argument.arg] = Parameter(annotation, default is None)
    return Signature(parameters, arguments.kwarg is not None, module.name)


# Annotations


def _type(module: _Module, node: ast.AST | None, depth: int = 0) -> Any:
    """The typing construct that an annotation stands for; Any where it cannot be told."""
    if node is None or depth > 20:
        return Any
    if isinstance(node, ast.Constant):
        if node.value is None or node.value is Ellipsis:
            return node.value
        if isinstance(node.value, str):
            return _type(module, ast.parse(node.value.strip(), mode="eval").body, depth + 1)
        return Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_type(module, node.left, depth + 1), _type(module, node.right, depth + 1)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        generic = _type(module, node.value, depth + 1)
        if generic is typing.Literal:
            try:
                return typing.Literal[ast.literal_eval(node.slice)]
            except ValueError:
                return Any
        elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if generic is typing.Annotated or generic in (typing.Final, typing.ClassVar):
            return _type(module, elements[0], depth + 1)
        if isinstance(generic, type) and issubclass(generic, Opaque):
            return generic
        if generic is typing.Callable or typing.get_origin(generic) is not None or isinstance(generic, type):
            origin = typing.get_origin(generic) or generic
            if origin in (typing.get_origin(typing.Callable), type):
                return generic
        if generic is Any:
            return Any
        arguments = tuple(_type(module, element, depth + 1) for element in elements)
        try:
            return generic[arguments if len(arguments) > 1 else arguments[0]]
        except TypeError:
            return Any
    if (dotted := _dotted(node)) is None:
        return Any
    return _named_type(module, dotted, depth)


def _named_type(module: _Module, dotted: list[str], depth: int) -> Any:
    binding = module.bindings.get(dotted[0])
    if binding is None and len(dotted) == 1 and hasattr(builtins, dotted[0]):
        return getattr(builtins, dotted[0])
    if isinstance(binding, ast.ImportFrom) and not binding.level and binding.module in LIGHT:
        alias = next(a for a in binding.names if (a.asname or a.name) == dotted[0])
        return _member(importlib.import_module(binding.module), [alias.name, *dotted[1:]])
    if isinstance(binding, ast.Import):
        alias = next(a for a in binding.names if (a.asname or a.name.partition(".")[0]) == dotted[0])
        path = ".".join([alias.name if alias.asname else dotted[0], *dotted[1:]])
        if path.rpartition(".")[0] in LIGHT:
            return _member(importlib.import_module(path.rpartition(".")[0]), [path.rpartition(".")[2]])
    try:
        owner, found, rest = _locate(module.name, dotted)
    except (_UnsettledError, NotFoundError, TypeError, SyntaxError):
        return Any
    if rest:
        return Any
    if isinstance(found, ast.ClassDef):
        bases = {(_dotted(b.value if isinstance(b, ast.Subscript) else b) or ["?"])[-1] for b in found.bases}
        return Any if bases & (VALUE_BASES | {"?"}) else type(found.name, (Opaque,), {})
    if isinstance(found, (ast.Assign, ast.AnnAssign)) and not isinstance(found.value, ast.Call):
        return _type(owner, found.value, depth + 1)
    return Any


def _member(value: Any, names: list[str]) -> Any:
    for name in names:
        value = getattr(value, name, Any)
    return value


def _dotted(node: ast.AST) -> list[str] | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else None


def _decorated(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, names: set[str]) -> bool:
    return any((_dotted(d.func if isinstance(d, ast.Call) else d) or ["?"])[-1] in names for d in node.decorator_list)


# Where the source does not settle it


def _imported(target: str) -> Signature:
    module_name, names = _split(target)
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:
        raise NotFoundError(module_name, f"the import of {target} failed ({error}), so it", []) from error
    for name in names:
        if not hasattr(value, name):
            raise NotFoundError(name, getattr(value, "__name__", module_name), [n for n in dir(value) if n[0] != "_"])
        value = getattr(value, name)
    if not callable(value):
        raise TypeError(f"{target} cannot be called")
    origin = getattr(value, "__module__", None) or module_name
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return Signature({}, True, origin)
    function = value.__init__ if isinstance(value, type) else value  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(function)
    except Exception:
        hints = {}
    kinds = inspect.Parameter
    parameters = {
        name: Parameter(
            typing.Optional[hints.get(name, Any)] if parameter.default is None else hints.get(name, Any),  # noqa: UP045
            parameter.default is kinds.empty,
        )
        for name, parameter in found.parameters.items()
        if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    }
    is_open = any(parameter.kind is kinds.VAR_KEYWORD for parameter in found.parameters.values())
    return Signature(parameters, is_open, origin)
