"""Documents taken out of all that was made of them, for those who withdrew their consent or ask to be forgotten.

In each finished run that holds a listed document, the file of documents is rewritten without it, and the samples of
cleaning.json, which may quote it, are emptied; the shards made of such runs are encoded anew. The manifests say what
was done, by number: fingerprints stay, hashes of outputs change, and so `athanor lineage` of a model trained before
says that it saw documents erased since. Tokenizers and models are left: what they learnt is for their owner to judge.

Raw files are not touched. Preparing them again would bring the documents back, so that it is refused with --force; name
the list as an input of the experiment and put `athanor.corpus.privacy.Removed` last among its steps: after the search
for duplicates, where a copy of what was removed would else stay in its place.

Killed at any moment, the same command goes on: what it is about to do to a run is in that run's manifest first.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from athanor.corpus.documents import FILENAME, read_documents, write_documents
from athanor.corpus.privacy import names_of, removal_list
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs import files, lineage, reproduce, store
from athanor.runs.lock import locked
from athanor.runs.run import MANIFEST, Run, digest, list_runs

CLEANING = "cleaning.json"


@dataclass
class Erasure:
    """Runs and how many documents were taken out of each, or would be.

    saw: trainings that read shards, or documents, which held any. left: other runs made of them, such as tokenizers.
    missing: identities of the list that no run holds, nor held before.
    """

    documents: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    saw: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    missing: int = 0


def erase(lists: Sequence[str], root: Path, *, dry: bool = False, progress: Progress | None = None) -> Erasure:
    """Erase the documents on the lists from the runs in a folder.

    Args:
        lists: files with an identity, or its hash, a line; see `athanor.corpus.privacy.Removed`.
        dry: only say what would be done.

    Raises:
        UserError: a list is missing or empty, a run is damaged or in the hands of another process.
    """
    progress = progress or Progress(quiet=True)
    identities = removal_list(list(lists))
    if not identities:
        raise UserError(f"{', '.join(lists)} names no document; write the identity of one on each line.")
    request = sha256("\n".join(sorted(identities)).encode()).hexdigest()
    runs = [run for run in list_runs(root) if run.manifest["status"] == "finished"]
    found, met = Erasure(), set[str]()
    progress.start("erase")
    for done, run in enumerate(runs):
        progress.update(done, len(runs), runs=done)
        if FILENAME not in run.manifest["outputs"]:
            continue
        kept, gone = 0, 0
        for document in read_documents(run.directory / FILENAME):
            own = names_of(document.id) & identities
            met |= own
            kept, gone = kept + (not own), gone + bool(own)
        if not gone and "erasing" not in run.manifest:
            continue
        if not kept:
            raise UserError(f"{run.id} would keep none of its {gone} documents; remove its folder instead.")
        found.documents[run.id] = gone
        if not dry:
            strike(run, identities, request)
    found.missing = len(identities - met)
    touched = set(found.documents)
    for run in runs:
        targets = run.manifest["config"].get("job", {}).get("_target_", "")
        above = [entry for entry in run.manifest["inputs"].values() if entry["kind"] == "run"]
        if targets.endswith(".WriteShards") and (
            touched & {f"{entry['name']}/{entry['fingerprint']}" for entry in above} or outdated(run)
        ):
            found.shards[run.id] = 0 if dry else rebuild(run, request, progress)
            touched.add(run.id)
    for run in runs:
        if run.id in touched or FILENAME in run.manifest["outputs"]:
            continue
        if touched & set(ancestors(lineage.trace(run))):
            (found.saw if run.manifest["kind"] == "train" else found.left).append(run.id)
    progress.finish()
    return found


def strike(run: Run, identities: set[str], request: str) -> None:
    """Rewrite the documents of a run without those."""
    with locked(run.directory):
        manifest = dict(Run(run.directory).manifest)
        before = manifest.get("erasing") or {"before": digest(manifest["outputs"]), "documents": 0}
        path, count = run.directory / FILENAME, 0

        def kept() -> Any:
            nonlocal count
            for document in read_documents(path):
                if names_of(document.id) & identities:
                    count += 1
                else:
                    yield document

        number = sum(1 for document in read_documents(path) if names_of(document.id) & identities)
        pending = before | {"documents": before["documents"] or number}
        files.write_json(run.directory / MANIFEST, manifest | {"erasing": pending})
        write_documents(path, kept())
        written = [FILENAME]
        if CLEANING in manifest["outputs"]:
            account = json.loads((run.directory / CLEANING).read_text("utf-8"))
            for step in account.get("steps", []):
                step["samples"] = {}
            account["erased"] = account.get("erased", 0) + count
            files.write_atomic(run.directory / CLEANING, json.dumps(account, ensure_ascii=False, indent=1) + "\n")
            written.append(CLEANING)
        for name in written:
            whole = run.directory / name
            manifest["outputs"][name] = {"sha256": files.sha256(whole), "bytes": whole.stat().st_size}
        record(run, manifest, pending["before"], pending["documents"], request, in_place=True)


def rebuild(run: Run, request: str, progress: Progress) -> int:
    """Encode the shards of a run again; returns how many documents fewer there are."""
    before, size = run.outputs_digest, documents_in(run)
    earlier = run.manifest.get("erased", [])
    made = store.execute(reproduce.again(run, run.directory), force=True, progress=progress, title=run.name)
    fewer = size - documents_in(made)
    manifest = dict(made.manifest) | {"erased": earlier}
    record(made, manifest, before, fewer, request, in_place=False)
    return fewer


def record(run: Run, manifest: dict[str, Any], before: str, documents: int, request: str, *, in_place: bool) -> None:
    """What was done, in the manifest; the list itself is not, since it may name persons."""
    entry = {"when": time.time(), "documents": documents, "list_sha256": request, "in_place": in_place}
    entry |= {"before": before, "after": digest(manifest["outputs"])}
    manifest["erased"] = [*manifest.get("erased", []), entry]
    manifest.pop("erasing", None)
    files.write_json(run.directory / MANIFEST, manifest)


def outdated(run: Run) -> bool:
    """Whether it read documents that have been erased since."""
    for entry in run.manifest["inputs"].values():
        if entry["kind"] == "run":
            above = lineage.locate(entry, run)
            if lineage.erased_since(above, entry.get("outputs")):
                return True
    return False


def documents_in(run: Run) -> int:
    splits = json.loads((run.directory / "shards.json").read_text("utf-8"))["splits"]
    return sum(split["documents"] for split in splits.values())


def ancestors(tree: dict[str, Any]) -> list[str]:
    """The runs below the root of a lineage."""
    found = []
    for entry in tree.get("inputs", []):
        if entry["kind"] != "files":
            found += [f"{entry['name']}/{entry['fingerprint']}", *ancestors(entry)]
    return found
