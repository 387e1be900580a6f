"""The verbs to watch runs with: a page on this machine, and Weights & Biases."""

from __future__ import annotations

from athanor import catalog
from athanor.cli.parts import RUN_HELP, new_parser, short
from athanor.errors import UserError


def do_dashboard(words: list[str]) -> int:
    parser = new_parser("dashboard", "[FOLDER] [--port N]")
    parser.add_argument("folder", nargs="?", help="a folder of runs; default $ATHANOR_RUNS, else runs")
    parser.add_argument("--port", type=int, default=8700, metavar="N", help="0 for any that is free; default 8700")
    options = parser.parse_args(words)

    import secrets
    from pathlib import Path

    root = Path(options.folder).resolve() if options.folder else catalog.runs_root()
    if options.folder and not root.is_dir():
        raise UserError(f"there is no folder {options.folder}")
    try:
        from athanor.dashboard import server
    except ModuleNotFoundError as error:
        raise UserError(f"{error}; the dashboard needs an extra: pip install 'athanor[dashboard]'") from None

    opened, token = server.listen(options.port), secrets.token_urlsafe(24)
    print(f"http://{server.HOST}:{opened.getsockname()[1]}/?token={token}", flush=True)
    try:
        server.serve(root, opened, token)
    except KeyboardInterrupt:  # the way to end it
        print()
    return 0


def do_wandb_sync(words: list[str]) -> int:
    parser = new_parser("wandb-sync", "[RUN ...] [--dry-run]")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"only these; default all: {RUN_HELP}")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    options = parser.parse_args(words)

    from athanor.cluster import wandb_sync

    folders, going = wandb_sync.kept(options.runs)
    for run in going:
        print(f"{run.id} is running; send it when it has ended")
    if not folders:
        print("nothing to send")
        return 0
    for folder in folders:
        print(short(folder))
    if options.dry_run:
        return 0
    left = wandb_sync.send(folders)
    print(f"sent {len(folders) - len(left)} of {len(folders)}")
    return 1 if left else 0
