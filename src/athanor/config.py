"""From an experiment's name to what is run: compose, resolve its inputs, part science from execution, fingerprint.

An experiment names the science, a cluster the hardware. The fingerprint is a hash of the science and of the content of
the inputs; it gives the run its directory. EXECUTION keys, names and places never enter it, not even by interpolation.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shlex
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from athanor import catalog, checker, signatures
from athanor.errors import UserError
from athanor.runs.files import Hashes
from athanor.runs.run import Run, find_run

EXECUTION = ("cluster", "strategy", "logger", "paths", "checkpoint", "display", "executor")
LIBRARIES = ("torch.", "torchmetrics.", "lightning.")  # of a version that the manifest records
DESCRIPTIVE = ("name", "tags", "allowed_targets")
NOT_PORTABLE = ("name", "paths", "logger", "display")
STDLIB_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Input:
    """What an experiment reads, named by its content."""

    name: str
    kind: str  # "run" or "files"
    fingerprint: str
    paths: list[Path]  # the run's directory, or the files in the order of their names
    source: str  # the run's experiment, or the pattern of the files
    experiment: Experiment | None = None

    @property
    def value(self) -> str | list[str]:
        """What `${inputs.<name>}` becomes: the run's directory or the list of files."""
        return str(self.paths[0]) if self.kind == "run" else [str(path) for path in self.paths]


@dataclass(frozen=True)
class Experiment:
    """A composed experiment with its inputs resolved. Nothing of it is built yet."""

    name: str
    kind: str
    config: dict[str, Any]  # resolved; what is executed
    science: dict[str, Any]  # resolved; what is hashed
    inputs: dict[str, Input]
    fingerprint: str
    directory: Path
    overrides: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()  # found while composing; `validate` raises them
    variables: frozenset[str] = field(default_factory=frozenset)  # top-level keys that interpolations refer to

    @property
    def command(self) -> str:
        """The command line that makes this run."""
        return shlex.join(("athanor", self.kind, f"experiment={self.name}", *self.overrides))

    def validate(self) -> None:
        """Raise one UserError with every problem of this experiment, and what keeps its inputs from being found."""
        upstream = [f"{entry.name}: {problem}" for entry in self.upstream() for problem in entry.problems]
        if problems := [*self.problems, *upstream, *check(self.config, self.variables)]:
            raise UserError(_listed(f"{self.name} cannot run", problems))

    def upstream(self) -> Iterator[Experiment]:
        """The experiments whose runs this one reads, deepest first, each once."""
        seen: set[Path] = set()
        for entry in self.inputs.values():
            if entry.experiment:
                for experiment in (*entry.experiment.upstream(), entry.experiment):
                    if experiment.directory not in seen:
                        seen.add(experiment.directory)
                        yield experiment


def load(
    name: str,
    overrides: Sequence[str] = (),
    *,
    inputs: Mapping[str, Experiment] | None = None,
    stand_ins: Mapping[str, Experiment] | None = None,
) -> Experiment:
    """Compose an experiment and, recursively, those it reads from; hash the raw files; compute the fingerprint.

    Args:
        overrides: in Hydra's syntax. `paths` holds for the inputs' experiments too.
        inputs: experiments that take the place of the inputs of these names.
        stand_ins: experiments that take the place of those of these names wherever an input, near or far, names one
            without overrides of its own: a pipeline's earlier steps.

    Raises:
        UserError: the experiment does not compose. Problems that leave it composable are kept for `validate`.
    """
    return _loaded(_Loader(stand_ins or {}), name, overrides, inputs)


def _loaded(
    loader: _Loader, name: str, overrides: Sequence[str], inputs: Mapping[str, Experiment] | None = None
) -> Experiment:
    experiment = loader.load(name, tuple(overrides), inputs)
    for hashes in loader.hashes.values():
        hashes.save()
    return experiment


Documents = dict[
    str, dict[str, Any]
]  # experiments as `portable` writes them, by `reference`, the readers after the read


def reference(experiment: Experiment) -> str:
    """How a portable document is called."""
    return f"{experiment.name}@{experiment.fingerprint}"


def portable(experiment: Experiment) -> Documents:
    """The experiment and all that it reads from, as `load_portable` composes them again in any clone of the project.

    Interpolations stay, paths and loggers are left out, and inputs that are runs name one another by `reference`.

    Raises:
        UserError: an input names a file by a path of this machine, or a run that today's experiments do not make.
    """
    found: Documents = {}
    inputs: dict[str, Any] = {}
    raw = _compose(experiment.name, experiment.overrides)
    config = {str(k): v for k, v in OmegaConf.to_container(raw).items() if k not in NOT_PORTABLE}  # type: ignore[union-attr]
    if isinstance(config.get("cluster"), dict):
        config["cluster"].pop("slurm", None)
    for key, entry in experiment.inputs.items():
        if entry.kind == "run":
            above = entry.experiment or _of_run(Run(entry.paths[0]))
            found |= portable(above)
            inputs[key] = reference(above)
        else:
            inputs[key] = {"files": (patterns := config["inputs"][key]["files"])}
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                if os.path.isabs(pattern):
                    raise UserError(
                        f"{experiment.name}, inputs.{key}: {pattern} is a path of this machine; put the files below "
                        "paths.data_root and name them as '${paths.data_root}/...'"
                    )
    config["inputs"] = inputs
    overrides = [text for text in experiment.overrides if not is_execution(text)]
    return found | {
        reference(experiment): {
            "name": experiment.name, "kind": experiment.kind, "overrides": overrides, "config": config,
        }
    }  # fmt: skip


def load_portable(wanted: str, documents: Documents, overrides: Sequence[str] = ()) -> Experiment:
    """Compose an experiment from documents in place of the files under experiments/.

    Args:
        wanted: its `reference`. Whether the fingerprints are still those of the references the caller looks at.
        overrides: of its execution; where they speak of `cluster`, `strategy` or `checkpoint` they replace the
            document's.
    """
    if science := [text for text in overrides if not is_execution(text)]:
        raise UserError(f"{science[0]!r} changes what is computed; only how it is run may be overridden here")
    return _loaded(_Loader({}, documents), wanted, overrides)


def _of_run(run: Run) -> Experiment:
    """The experiment that made a run, if today's files still say so."""
    experiment = load(run.name, run.manifest["overrides"])
    if experiment.fingerprint != run.fingerprint:
        raise UserError(
            f"{run.id} is not what experiments/{run.name}.yaml makes today; make it again and what reads it"
        )
    return experiment


def base(kind: str) -> dict[str, Any]:
    """What `/train`, `/prepare` or `/evaluate` alone composes to, interpolations unresolved."""
    return dict(OmegaConf.to_container(_base(kind, ())))  # type: ignore[arg-type]


def _base(kind: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(catalog.source() / "configs"), version_base="1.3"):
        composed = compose(config_name=kind, overrides=list(overrides))
    OmegaConf.set_struct(composed, False)
    return composed


def _from_document(document: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    given = {re.split(r"[.=@/]", text.lstrip("+~"), maxsplit=1)[0] for text in overrides}
    composed = _base(document["kind"], overrides)
    kept = {key: composed._get_node(key) for key in EXECUTION if key in composed}
    recorded = {key: value for key, value in document["config"].items() if key not in given}
    return OmegaConf.merge(OmegaConf.create(kept), OmegaConf.create(recorded))  # type: ignore[return-value]


def check(config: Mapping[str, Any], variables: frozenset[str] = frozenset()) -> list[str]:
    """Every problem of a resolved config, a sentence each; [] if there is none."""
    return checker.check(config, execution=EXECUTION, variables=variables)


def build(node: Any, **keywords: Any) -> Any:
    """Construct what a node's `_target_` names, and all nodes within it, with plain lists and dicts.

    Raises:
        UserError: a constructor refused its arguments with a ValueError.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all", **keywords)
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError) or not isinstance(cause, Exception):
            raise (cause or error) from None
        if type(cause) is ValueError:
            raise UserError(f"{node.get('_target_')}: {cause}") from cause
        raise cause from None


def applicable(name: str, overrides: Sequence[str]) -> list[str]:
    """Those of the overrides whose key or group the experiment has, once the groups among them are chosen."""
    if not overrides:
        return []
    config, groups = _compose(name, ()), catalog.source() / "configs"
    keys = [(text, _parse(text).key_or_group) for text in overrides]
    if chosen := tuple(text for text, key in keys if (groups / key).is_dir() and _has(config, key)):
        config = _compose(name, chosen)
    return [text for text, key in keys if _has(config, key.replace("/", "."))]


def is_execution(override: str) -> bool:
    """Whether an override concerns how and not what: it leaves the fingerprint alone."""
    return re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0] in EXECUTION


def fingerprint(kind: str, science: Mapping[str, Any]) -> str:
    """16 hex digits over kind and science: equal exactly where the same thing would be computed."""
    text = json.dumps({"kind": kind, "science": science}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Loader:
    """One call of `load`: each experiment is composed once, and hashes are remembered for each runs root."""

    def __init__(self, stand_ins: Mapping[str, Experiment], documents: Documents | None = None) -> None:
        self.stand_ins, self.documents = stand_ins, documents or {}
        self.loaded: dict[tuple[str, tuple[str, ...]], Experiment] = {}
        self.hashes: dict[Path, Hashes] = {}
        self.under_way: list[str] = []

    def load(self, name: str, overrides: tuple[str, ...], inputs: Mapping[str, Experiment] | None = None) -> Experiment:
        if (known := self.loaded.get((name, overrides))) is None:
            if name in self.under_way:
                raise UserError(f"the inputs of {name} lead back to itself: {' <- '.join([*self.under_way, name])}")
            self.under_way.append(name)
            known = self.loaded[name, overrides] = self._load(name, overrides, inputs or {})
            self.under_way.pop()
        return known

    def _load(self, name: str, overrides: tuple[str, ...], given: Mapping[str, Experiment]) -> Experiment:
        own = overrides
        if document := self.documents.get(name):
            name, composed = document["name"], _from_document(document, overrides)
            own = (*document["overrides"], *overrides)
        else:
            composed = _compose(name, overrides)
        kind = composed.get("kind")
        references = frozenset(re.findall(r"\$\{(\w+)", json.dumps(OmegaConf.to_container(composed), default=str)))
        composed.name = name
        composed.inputs = composed.get("inputs") or {}
        problems: list[str] = []
        composed.paths = paths = {
            key: str((catalog.project() / value).absolute()) if isinstance(value, str) and value != "???" else value
            for key, value in _plain(composed.paths, "paths", problems).items()
        }
        root = Path(paths["runs"])

        if unknown := sorted(set(given) - set(map(str, composed.inputs))):
            raise UserError(f"{name} has no input {unknown[0]!r}{catalog.suggest(unknown[0], composed.inputs)}")
        inputs: dict[str, Input] = {}
        unresolved = Input("", "run", "", [Path(checker.UNRESOLVED)], "")
        for key, spec in _plain(composed.inputs, "inputs", problems).items():
            try:
                if spec == checker.UNRESOLVED:
                    inputs[key] = unresolved
                elif key in given:
                    inputs[key] = _from_experiment(key, given[key])
                else:
                    inputs[key] = self._input(key, spec, tuple(filter(_is_path, overrides)), root)
            except UserError as error:
                problems.append(f"inputs.{key}: {error}")
                inputs[key] = unresolved

        science = composed.copy()
        pins = tuple(
            f"inputs.{key}={entry.experiment.name}/{entry.fingerprint}"
            for key, entry in inputs.items()
            if entry.experiment and (key in given or entry.source in self.stand_ins)
            if not all(map(is_execution, entry.experiment.overrides))
        )
        composed.inputs = {key: entry.value for key, entry in inputs.items()}
        science.inputs = {key: entry.fingerprint for key, entry in inputs.items()}
        for key in EXECUTION:
            if key in science:
                science[key] = _blank(science._get_node(key))
        config = _plain(composed, "", problems)
        hashed = {k: v for k, v in _plain(science, "", []).items() if k not in (*EXECUTION, *DESCRIPTIVE, "kind")}
        hashed = _versioned(hashed)
        digest = fingerprint(kind, hashed)
        return Experiment(
            name=name,
            kind=kind,
            config=config,
            science=hashed,
            inputs=inputs,
            fingerprint=digest,
            directory=root / name / digest,
            overrides=(*own, *pins),
            problems=tuple(problems),
            variables=references,
        )

    def _input(self, key: str, spec: Any, inherited: tuple[str, ...], root: Path) -> Input:
        if spec == "???":
            raise UserError(f"unset; give it an experiment or a run: `inputs.{key}=...`")
        if isinstance(spec, str):
            spec = {"experiment": spec}
        if not isinstance(spec, dict) or not {"experiment", "files"} & set(spec):
            raise UserError("must name an experiment or a run, or be `{experiment:, overrides:}` or `{files:}`")
        if extra := sorted(set(spec) - {"experiment", "overrides", "files"}):
            raise UserError(f"has no {extra[0]!r}{catalog.suggest(extra[0], ['experiment', 'overrides', 'files'])}")
        if "files" in spec:
            patterns = [spec["files"]] if isinstance(spec["files"], str) else list(spec["files"])
            return self._files(key, patterns, root)
        reference, overrides = spec["experiment"], tuple(spec.get("overrides") or ())
        if not overrides and (stand_in := self.stand_ins.get(reference)):
            return _from_experiment(key, stand_in)
        if not overrides and (directory := find_run(reference, root)):
            run = Run(directory)
            return Input(key, "run", run.fingerprint, [directory], run.name)
        if os.path.isabs(reference):
            raise UserError(f"{reference} is no run: it has no manifest.json")
        return _from_experiment(key, self.load(reference, (*overrides, *inherited)))

    def _files(self, key: str, patterns: list[str], root: Path) -> Input:
        files: dict[Path, None] = {}
        for pattern in patterns:
            if not (found := _stdlib() if pattern == "python-stdlib" else _glob(pattern)):
                raise UserError(f"no file matches {pattern!r}; correct the pattern or `paths.data_root`")
            files |= dict.fromkeys(found)
        folder = Path(os.path.commonpath([path.parent for path in files]))
        names = sorted((path.relative_to(folder).as_posix(), path) for path in files)
        hashes = self.hashes.setdefault(root, Hashes(root))
        digest = hashlib.sha256()
        for name, path in names:
            digest.update(f"{name}\0{hashes(path)}\n".encode())
        return Input(key, "files", digest.hexdigest()[:16], [path for _, path in names], ", ".join(patterns))


def _from_experiment(key: str, experiment: Experiment) -> Input:
    return Input(key, "run", experiment.fingerprint, [experiment.directory], experiment.name, experiment)


def _is_path(override: str) -> bool:
    """Whether an override says where things are, which holds for an experiment's inputs too."""
    return re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0] == "paths"


def _glob(pattern: str) -> list[Path]:
    where = str(catalog.project() / Path(pattern).expanduser())
    if os.path.isdir(where):
        raise UserError(f"{pattern!r} is a folder; say which of its files, for example '{pattern.rstrip('/')}/**'")
    return [Path(found) for found in sorted(glob.glob(where, recursive=True)) if os.path.isfile(found)]


def _stdlib() -> list[Path]:
    """The modules of this CPython's own library, without its tests and what was installed into it."""
    found: list[Path] = []
    for folder, folders, files in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = sorted(set(folders) - STDLIB_LEFT_OUT)
        found.extend(Path(folder, file) for file in sorted(files) if file.endswith(".py"))
    return found


def _plain(node: Any, path: str, problems: list[str]) -> Any:
    """Resolve every interpolation into plain dicts and lists. What is unset stays "???"; what fails is a problem."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return node
    keys: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    values = []
    for key in keys:
        where = f"{path}.{key}" if path else str(key)
        try:
            value = "???" if OmegaConf.is_missing(node, key) else node[key]
        except InterpolationToMissingValueError:
            value = "???"
        except OmegaConfBaseException as error:
            value = checker.UNRESOLVED
            text = str(error).splitlines()[0]
            if isinstance(error, InterpolationKeyError) and (name := re.search(r"key '(.+)' not found", text)):
                root = node._get_root()
                text = f"${{{name[1]}}} refers to nothing{catalog.suggest(name[1], _keys(root))}"
            problems.append(f"{where}: {text}")
        values.append(_plain(value, where, problems))
    return dict(zip(map(str, keys), values)) if isinstance(node, DictConfig) else values


def _blank(node: Any) -> Any:
    """An execution value as science sees it: something of the same shape that says nothing."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        return {key: _blank(node._get_node(key)) for key in node}
    return "execution"


def _versioned(node: Any) -> Any:
    """The same tree, with `_version_` beside each `_target_` whose class has a `version`: raising it tells that the
    same settings now compute something else.
    """
    if isinstance(node, list):
        return [_versioned(value) for value in node]
    if not isinstance(node, dict):
        return node
    found = {key: _versioned(value) for key, value in node.items()}
    target = node.get("_target_")
    if isinstance(target, str) and not target.startswith(LIBRARIES) and (number := signatures.version(target)):
        found["_version_"] = number
    return found


def _keys(node: Any, path: str = "") -> list[str]:
    """All dotted keys of a config, unresolved."""
    found = []
    if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none() and not node._is_interpolation():
        for key in node:
            where = f"{path}.{key!s}" if path else str(key)
            found += [where, *_keys(node._get_node(key), where)]
    return found


def _has(config: DictConfig, key: str) -> bool:
    return key in _keys(config) or (
        isinstance(parent := OmegaConf.select(config, key.rpartition(".")[0]), ListConfig)
        and key.rpartition(".")[2].isdigit()
        and int(key.rpartition(".")[2]) < len(parent)
    )


# Hydra and what it says, in words of this project


def _compose(name: str, overrides: tuple[str, ...]) -> DictConfig:
    catalog.find(name)
    try:
        config = _hydra(name, overrides)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(_explain(name, overrides, error)) from error
    if config.get("kind") not in catalog.KINDS:
        raise UserError(f"{name} is a {catalog.find(name).kind}: use `athanor pipeline experiment={name}`")
    return config


def _hydra(name: str, overrides: Sequence[str]) -> DictConfig:
    """The experiment laid over an empty config, its own groups taken from `configs/`; not in struct mode."""
    group, _, option = name.rpartition("/")
    if not group:
        raise UserError(f"{name!r} lies beside the folders of experiments/; move it into one")
    project = catalog.source()
    own = [f"+{group}@_global_={option}", f"hydra.searchpath=[file://{project / 'experiments'}]"]
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        config = compose(overrides=[*own, *overrides])
    OmegaConf.set_struct(config, False)
    return config


def _parse(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except (OverrideParseException, HydraException):
        raise UserError(
            f"{override!r} is no override; write key=value, quoted inside if it holds , [ or letters beyond ASCII"
        ) from None


def _explain(name: str, overrides: tuple[str, ...], error: Exception) -> str:
    """What is wrong: with the file if it does not compose by itself, else with each override that it cannot take."""
    if not overrides:
        return f"experiments/{name}.yaml does not compose: {_sentence(error)}"
    problems, parsed = [], []
    for text in overrides:
        try:
            parsed.append((text, _parse(text)))
        except UserError as refusal:
            problems.append(str(refusal))
    configs = catalog.source() / "configs"
    groups = {path.relative_to(configs).as_posix() for path in configs.rglob("*") if path.is_dir()}
    options = {group: sorted(path.stem for path in (configs / group).glob("*.yaml")) for group in groups}
    chosen = [text for text, o in parsed if not o.is_delete() and o.value() in options.get(o.key_or_group, ())]
    base = None
    for choice in (chosen, []):
        try:
            base = _hydra(name, choice)
            break
        except Exception as failure:
            last = failure
    if base is None:
        return f"experiments/{name}.yaml does not compose: {_sentence(last)}"
    known = [*_keys(base), *groups]
    for text, override in parsed:
        key, value = override.key_or_group, override.value()
        if key in groups and isinstance(value, str) and value not in options[key] and not override.is_delete():
            problems.append(f"{text}: configs/{key} has no {value!r}{catalog.suggest(value, options[key])}")
        elif override.is_add() and not override.is_force_add() and _has(base, key):
            problems.append(f"{text}: {key} exists already; drop the +")
        elif not override.is_add() and not override.is_force_add() and not _has(base, key.replace("/", ".")):
            near = "" if key in groups else catalog.suggest(key, known)
            problems.append(f"{text}: {name} has no {key!r}{near or f'; to add it, write +{text}'}")
    if not problems:
        problems = [_sentence(error)]
    return _listed(f"{name} does not take these overrides", problems)


def _sentence(error: Exception) -> str:
    """The one line of a library's error that a reader can use."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        place = Path(error.problem_mark.name)
        where = place.relative_to(catalog.source()) if place.is_relative_to(catalog.source()) else place
        return f"{where}, line {error.problem_mark.line + 1}: {error.problem}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, MissingConfigException):
        text = " ".join(lines)
        if match := re.search(r"Could not find '([^']+)'", text):
            group, _, option = match[1].rpartition("/")
            folder = catalog.source() / "configs" / group
            return (
                f"configs/{group} has no {option!r}{catalog.suggest(option, [p.stem for p in folder.glob('*.yaml')])}"
            )
    return lines[0] if lines else type(error).__name__


def _listed(title: str, problems: Sequence[str]) -> str:
    return f"{title}: {problems[0]}" if len(problems) == 1 else "\n  - ".join((f"{title}:", *problems))
