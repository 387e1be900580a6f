"""The house's own rules (imports go one way, no algorithm knows its strategy, help is fast), read from the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "athanor"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up; a module may import from its own storey, and those below it. `runs` has two: what reads runs, and
# what makes them.
READING = ("files", "lock", "run")
STOREYS = [
    {
        "errors",
        "split",
        "batches",
        "functional",
        "schedules",
        "optimizers",
        "diagnosis",
        "linear_cross_entropy",
        "keys",
        "lean",
        "ring",
        "progress",
        "signals",
        "slurm",
    },
    {"catalog", "signatures", "schema", "checker", "runs.reading"},
    {"config"},
    {"runs"},
    {"models", "corpus", "rollout"},
    {"data"},
    {"algorithms"},
    {"callbacks", "shares", "placement", "acceleration", "strategies", "stages", "context", "float8", "troubles"},
    {"train", "consolidate"},
    {"evaluation"},
    {"annotation"},
    {"planning"},
    {"scaling"},
    {"report"},
    {"pipeline", "sweeps"},
    {"reproduction"},
    {"cluster"},
    {"dashboard"},
    {"cli"},
    {"__main__"},
]
# What is imported inside a function is wanted only when it runs: there, one part may start another from below.
UPWARD = {
    ("runs", "train"),  # a run starts its training
    ("corpus", "data"),  # the checker of the tasks, as a reward model, reads its prompts as PPO does
}


def room(*parts: str) -> str:
    """Of a module by the parts of its name after `athanor`."""
    return "runs.reading" if parts[0] == "runs" and len(parts) > 1 and parts[1] in READING else parts[0]


def room_of(path: Path) -> str:
    return room(*path.relative_to(PACKAGE).with_suffix("").parts)


def storey(name: str) -> int:
    return next(i for i, rooms in enumerate(STOREYS) if name in rooms)


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(imported room of athanor, line, whether it is imported as the module is)."""
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            eager = False
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "athanor" and len(parts) > 1 and not parts[1].startswith("__"):
                found.append((room(*parts[1:]), node.lineno, eager))
        for child in ast.iter_child_nodes(node):
            visit(child, eager)

    visit(ast.parse(path.read_text("utf-8")), True)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    if path == PACKAGE / "__init__.py":
        assert not imports(path)
        return
    here = room_of(path)
    for other, line, eager in imports(path):
        allowed = storey(other) <= storey(here) or (not eager and (here, other) in UPWARD)
        assert allowed, f"{path.relative_to(REPOSITORY)}:{line} imports athanor.{other} from above"


def test_every_room_is_on_a_storey():
    assert {room_of(path) for path in MODULES} - {"__init__"} == set().union(*STOREYS)


def test_no_module_imports_itself_in_a_circle():
    """At import time, module by module."""
    graph = {}
    for path in MODULES:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {
            ".".join(p)
            for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("athanor")
            for alias in node.names
            for p in (node.module.split("."), [*node.module.split("."), alias.name])
        }
    graph = {name: {other for other in others if other in graph and other != name} for name, others in graph.items()}
    graph = {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in graph.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                walk(other, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


STRATEGIES = re.compile(r"fsdp|deepspeed|zero[-_ ]?[123]|\bddp\b|DistributedDataParallel|ModelParallel|dtensor", re.I)


@pytest.mark.parametrize("folder", ["algorithms", "models", "data"])
def test_no_algorithm_names_a_strategy(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert not STRATEGIES.search(line), f"{path.name}:{number}: {line.strip()}"


def test_algorithms_have_one_base_and_no_deeper_hierarchy():
    for path in (PACKAGE / "algorithms").glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                assert bases in (["Algorithm"], ["LightningModule"], ["NamedTuple"]), f"{path.name}: {node.name}"
                assert bases != ["LightningModule"] or path.name == "base.py"


HEAVY = ("torch", "lightning", "numpy", "transformers", "pandas", "scipy", "pyarrow", "wandb", "sentencepiece", "hydra")


@pytest.mark.parametrize("module", ["athanor", "athanor.cli", "athanor.catalog", "athanor.progress"])
def test_help_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("module", ["athanor.config", "athanor.checker", "athanor.runs.store", "athanor.pipeline"])
def test_checking_and_skipping_need_no_torch(module):
    code = f"import sys, {module}; print(*(name for name in ('torch', 'lightning') if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def tracked() -> list[Path]:
    """The files of the repository; those on disk where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, text=True,
            check=True,
        ).stdout.split("\0")  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        listed = [str(path.relative_to(REPOSITORY)) for root in ("src", "tests", "configs", "experiments")
                  for path in (REPOSITORY / root).rglob("*") if "__pycache__" not in path.parts]  # fmt: skip
    return [REPOSITORY / name for name in listed if name and (REPOSITORY / name).is_file()]


# Folders of one machine or one person; /dev, /proc and the like are the same everywhere.
MACHINE = re.compile(r"""(?<![\w.$}~:/-])/(?:home|root|work|Users|mnt|scratch|data|opt|tmp|var)/[\w.-]+""")


def test_no_file_names_a_path_of_some_machine():
    found = []
    for path in tracked():
        if path.suffix in {".png", ".model", ".safetensors", ".gz", ".zst", ".svg"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_opens_with_its_purpose(path):
    source = path.read_text("utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "say what the module is for"
