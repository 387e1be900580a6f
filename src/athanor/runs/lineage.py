"""From a run back to the raw documents, along the manifests, looking at every file on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from athanor.errors import UserError
from athanor.progress import clock
from athanor.runs.files import Hashes
from athanor.runs.run import Run


def trace(run: Run, *, fresh: bool = False) -> dict[str, Any]:
    """The tree of a run and all it was made from.

    Args:
        fresh: read every byte again, however untouched a file seems.

    Returns:
        {"name", "fingerprint", "kind", "status", "seconds", "directory", "commit", "command", "metrics", "problems",
        "inputs": [...]}, where an input is such a tree with its "input" name and how many documents were "erased" from
        it since it was read, or
        {"input", "kind": "files", "fingerprint", "source", "files", "bytes", "problems"}.
    """
    return _trace(run, fresh, {})


def _trace(run: Run, fresh: bool, seen: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    if run.directory in seen:
        return seen[run.directory]
    manifest = run.manifest
    tree = seen[run.directory] = {
        "name": run.name,
        "fingerprint": run.fingerprint,
        "kind": manifest["kind"],
        "status": run.status,
        "seconds": manifest["seconds"],
        "directory": str(run.directory),
        "commit": manifest["code"]["commit"],
        "command": manifest["command"],
        "metrics": run.metrics,
        "problems": run.damage(fresh=fresh),
        "inputs": [],
    }
    for name, entry in manifest["inputs"].items():
        if entry["kind"] == "files":
            tree["inputs"].append({"input": name, **_files(entry, run, fresh)})
            continue
        try:
            above = locate(entry, run)
        except UserError as error:
            found = {"name": entry["name"], "fingerprint": entry["fingerprint"], "kind": "run", "status": "missing"}
            tree["inputs"].append({"input": name, **found, "seconds": 0.0, "problems": [str(error)], "inputs": []})
            continue
        child = dict(_trace(above, fresh, seen))
        child["erased"] = erased_since(above, entry.get("outputs"))
        if child["erased"]:
            told = f"had {child['erased']} documents erased on request after {run.id} read it"
            child["problems"] = [*child["problems"], told]
        elif entry.get("outputs") not in (None, above.outputs_digest):
            child["problems"] = [*child["problems"], f"was remade with other outputs after {run.id} read it"]
        tree["inputs"].append({"input": name, **child})
    return tree


def erased_since(run: Run, outputs: str | None) -> int:
    """How many documents were erased from a run since its outputs had that digest."""
    records = run.manifest.get("erased", [])
    first = next((place for place, entry in enumerate(records) if entry["before"] == outputs), len(records))
    return sum(entry["documents"] for entry in records[first:])


def locate(entry: dict[str, Any], reader: Run) -> Run:
    """The run that a manifest's input entry names: where it was, or beside its reader if the folder of runs has moved.

    Raises:
        UserError: it is in neither place.
    """
    for directory in (Path(entry["directory"]), reader.root / entry["name"] / entry["fingerprint"]):
        if (directory / "manifest.json").is_file() and (run := Run(directory)).fingerprint == entry["fingerprint"]:
            return run
    raise UserError(f"the run {entry['name']}/{entry['fingerprint']} is gone")


def problems(tree: dict[str, Any]) -> list[str]:
    """Everything in a tree that is no longer as it was, each once, with the run that it concerns."""
    return list(dict.fromkeys(_problems(tree)))


def _problems(tree: dict[str, Any]) -> Iterator[str]:
    for entry in tree["inputs"]:
        if entry["kind"] == "files":
            yield from (f"{tree['name']}, input {entry['input']}: {problem}" for problem in entry["problems"])
        else:
            yield from _problems(entry)
    yield from (f"{tree['name']}/{tree['fingerprint']}: {problem}" for problem in tree["problems"])


def render(tree: dict[str, Any]) -> Any:
    """The tree for rich to print; a run that is met again is not unfolded again."""
    from rich.markup import escape
    from rich.tree import Tree

    shown: set[str] = set()

    def label(node: dict[str, Any]) -> str:
        prefix = f"[dim]{escape(node['input'])}:[/dim] " if "input" in node else ""
        if node["kind"] == "files":
            amount = f"{node['files']} file{'s' if node['files'] != 1 else ''}, {node['bytes']:,} bytes"
            text = f"{prefix}[green]{escape(node['source'])}[/green] {amount}"
        else:
            text = (
                f"{prefix}[bold]{escape(node['name'])}[/bold]/{node['fingerprint']} [dim]{clock(node['seconds'])}[/dim]"
            )
            if node["status"] != "finished":
                text += f" [yellow]{node['status']}[/yellow]"
        return text

    def grow(branch: Any, node: dict[str, Any]) -> None:
        for problem in node["problems"]:
            branch.add(f"[red]✗ {escape(problem)}[/red]")
        for child in node.get("inputs", []):
            again = child["kind"] != "files" and child["fingerprint"] in shown and bool(child["inputs"])
            twig = branch.add(label(child) + (" [dim](unfolded above)[/dim]" if again else ""))
            if not again:
                shown.add(child["fingerprint"])
                grow(twig, child)

    root = Tree(label(tree))
    grow(root, tree)
    return root


def _files(entry: dict[str, Any], run: Run, fresh: bool) -> dict[str, Any]:
    hashes, found = Hashes(run.root), []
    for file in entry["files"]:
        path = Path(file["path"])
        if not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != file["bytes"]:
            found.append(f"{path} was changed: it has {path.stat().st_size:,} bytes, and had {file['bytes']:,}")
        elif hashes(path, fresh=fresh) != file["sha256"]:
            found.append(f"{path} was changed: it has as many bytes as before, and others")
    hashes.save()
    return {
        "kind": "files",
        "fingerprint": entry["fingerprint"],
        "source": entry["source"],
        "files": len(entry["files"]),
        "bytes": sum(file["bytes"] for file in entry["files"]),
        "problems": found,
    }
