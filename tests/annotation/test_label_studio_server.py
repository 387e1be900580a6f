"""A real Label Studio takes what is exported for it, two people annotate, and what it gives back is what they said.

It has many dependencies, so that it lives in an environment of its own: `pip install label-studio` there, and
ATHANOR_LABEL_STUDIO=that/bin/label-studio here.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest
from test_tools import RECORDS, written

from athanor.annotation import label_studio, project
from athanor.annotation.agreement import agreement
from athanor.annotation.items import items_of

requests = pytest.importorskip("requests")
STARTS = 400  # seconds that it may take
PEOPLE = {"ann@example.org": "Long-enough-1", "ben@example.org": "Long-enough-2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    program = os.environ.get("ATHANOR_LABEL_STUDIO") or shutil.which("label-studio")
    if not program:
        pytest.skip("no Label Studio: set ATHANOR_LABEL_STUDIO to its program, see the top of this file")
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, password = next(iter(PEOPLE.items()))
    words = [program, "start", "--no-browser", "--port", str(port), "--data-dir", str(folder / "data")]
    quiet = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"), "HOME": str(folder), **quiet}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*words, "--username", first, "--password", password], stdout=log, stderr=log, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + STARTS
            while True:
                try:
                    if requests.get(f"{address}/health", timeout=5).ok:
                        break
                except requests.RequestException:
                    pass
                said = (folder / "log.txt").read_text()[-2000:]
                assert process.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(1)
            yield SimpleNamespace(address=address, log=folder / "log.txt")
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def session(server, email, new):
    """Somebody who has signed in."""
    own = requests.Session()
    page = f"{server.address}/user/{'signup' if new else 'login'}/"
    own.get(page, timeout=60)
    form = {"email": email, "password": PEOPLE[email], "csrfmiddlewaretoken": own.cookies["csrftoken"]}
    answer = own.post(page, data=form, headers={"Referer": page}, timeout=60)
    assert answer.ok, answer.text[:500]
    known = own.get(f"{server.address}/api/current-user/whoami", timeout=60).json()
    assert known["email"] == email
    own.number = str(known["id"])  # by which the export calls them
    return own


@pytest.fixture(scope="module")
def people(server):
    (ann, _), (ben, _) = PEOPLE.items()
    return {ann: session(server, ann, new=False), ben: session(server, ben, new=True)}


def call(server, who, method, path, **body):
    """What the server says to a request, as JSON."""
    headers = {"X-CSRFToken": who.cookies["csrftoken"], "Referer": server.address}
    answer = who.request(method, f"{server.address}/api/{path}", json=body or None, headers=headers, timeout=120)
    assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:800]}"
    return answer.json()


OTHER = {"answers": "Ein anderes 答案 😀", "pairs": "tie", "classes": "正面", "spans": [[2, 5, "LOC"]]}


@pytest.mark.parametrize("kind", RECORDS)
def test_there_and_back(server, people, tmp_path, kind):
    items = list(items_of([written(tmp_path / "records.jsonl", RECORDS[kind])], kind))
    opinions = {item.id: {"record": item.label} for item in items if item.label is not None}
    project.export(tmp_path / "p", items, kind, "label-studio", opinions=opinions)
    opened = project.load(tmp_path / "p")
    ann, ben = people.values()

    interface = (tmp_path / "p/interface.xml").read_text("utf-8")
    made = call(server, ann, "POST", "projects", title=kind, label_config=interface)
    tasks = json.loads((tmp_path / "p/tasks.json").read_text("utf-8"))
    headers = {"X-CSRFToken": ann.cookies["csrftoken"], "Referer": server.address}
    there = ann.post(f"{server.address}/api/projects/{made['id']}/import", json=tasks, headers=headers, timeout=120)
    assert there.status_code == 201, there.text[:800]
    assert there.json()["task_count"] == len(items)

    listed = call(server, ann, "GET", f"tasks?project={made['id']}&fields=all")["tasks"]
    by_item = {task["data"]["item"]: task["id"] for task in listed}
    assert by_item.keys() == opened.items.keys()
    said = {}
    for item in items:
        predictions = call(server, ann, "GET", f"predictions?task={by_item[item.id]}")
        assert len(predictions) == (item.label is not None), "what the record says is offered"
        shown = predictions[0]["result"] if predictions else label_studio.results(item, OTHER[kind])
        other = label_studio.results(item, OTHER[kind])
        for who, result in ((ann, shown), (ben, other)):
            call(server, who, "POST", f"tasks/{by_item[item.id]}/annotations/", result=result, lead_time=1)
        said[item.id] = (item.label if predictions else OTHER[kind], OTHER[kind])

    export = ann.get(f"{server.address}/api/projects/{made['id']}/export?exportType=JSON", timeout=120)
    assert export.ok, export.text[:500]
    (tmp_path / "back.json").write_bytes(export.content)
    taken = project.take(opened, [tmp_path / "back.json"])
    assert {i: (found[ann.number], found[ben.number]) for i, found in taken.annotations.items()} == said
    assert agreement(taken).labelled == dict.fromkeys(sorted((ann.number, ben.number)), len(items))
