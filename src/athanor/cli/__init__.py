"""The verbs. Nothing heavy is imported before one is chosen; what a user got wrong is one sentence and exit code 2.

A verb is a function `do_VERB(words) -> exit code` in one of the modules of this package, and a line below.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from athanor import __version__, catalog, signals
from athanor.errors import UserError

MODULES = {
    "experiments": {
        "prepare": "make data: documents, tokenizers, shards, tasks",
        "train": "train a model",
        "evaluate": "measure a model",
        "plan": "say what a training will need: parameters, memory, time",
        "pipeline": "run chained experiments and write their report",
    },
    "sweeps": {"sweep": "run the members of an ablation, or the trials of a search"},
    "cluster": {
        "submit": "send an experiment, a pipeline, an ablation or a search to SLURM",
        "jobs": "list the jobs sent to SLURM, and how far their runs are",
        "cancel": "end jobs; a training saves itself first",
    },
    "runs": {
        "runs": "list the runs",
        "scaling": "fit a scaling law to finished trainings",
        "lineage": "walk from a run back to its raw documents, looking at every file",
        "report": "write the page about a run or a pipeline",
        "erase": "take documents out of all that was made of them",
        "consolidate": "write the model of an unfinished run, out of its newest checkpoint",
        "export": "write a run's model and tokenizer in the form of Hugging Face",
    },
    "annotate": {"annotate": "take labels by people: to and from annotation tools, agreement, adjudication"},
    "watching": {
        "dashboard": "serve a page to look at the runs, on this machine only",
        "wandb-sync": "send to Weights & Biases what trainings have kept for it offline",
    },
    "proofs": {
        "reproduce": "rerun a run, or a recorded result, and compare",
        "record": "write an experiment's measured result beside it",
        "verify": "rerun all recorded results and say what has drifted",
        "prove": "train a few steps under several strategies and compare the models",
    },
}
VERBS = {verb: text for verbs in MODULES.values() for verb, text in verbs.items()}

OVERVIEW = f"""usage: athanor VERB [...]

Raw text to an aligned, evaluated language model, with a lineage for every number.

{chr(10).join(f"  {verb:<11} {text}" for verb, text in VERBS.items())}

`athanor VERB --help` says more and lists the experiments of that verb. To begin:

  athanor pipeline experiment=pipelines/demo

Exit codes: 0 done, 1 failed, 2 something to correct, 3 reproduced but not bit for bit,
75, 130 or 143 interrupted (the same command goes on)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("ATHANOR_DEBUG") not in (None, "", "0")
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        _complain(error, str(error), debug)
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        return _interrupted(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from athanor.runs.store import RunFailedError

        told = str(error) if isinstance(error, RunFailedError) else f"{type(error).__name__}: {error}"
        _complain(error, f"{told}" if debug else f"{told} (--debug shows the traceback here)", debug)
        return 1


def run() -> NoReturn:
    """The program: `main`, and the end of the process.

    A rank beside rank 0 ends without the interpreter's own end, in which threads of torch and gloo are now and then
    caught by their libraries' destructors ("terminate called without an active exception"): the launcher would take
    that for a failure and kill rank 0 while it writes the model.
    """
    code = main()
    if "torch" in sys.modules and _rank() > 0:
        for process in multiprocessing.active_children():
            process.terminate()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def _rank() -> int:
    from athanor.runs.context import rank

    return rank()


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0
    if words[0] == "--version":
        print(f"athanor {__version__}")
        return 0
    verb = words.pop(0)
    if verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}{catalog.suggest(verb, VERBS)}")
    module = next(name for name, verbs in MODULES.items() if verb in verbs)
    own = ("member=", "worker=", "trial=")
    training = verb == "train" or (verb == "sweep" and any(word.startswith(own) for word in words))
    with signals.handled(note=training or "--inputs" in words):
        return getattr(importlib.import_module(f"{__name__}.{module}"), f"do_{verb.replace('-', '_')}")(words)


def _interrupted(error: BaseException) -> int:
    from athanor.runs.context import rank

    code = error.code if isinstance(error, SystemExit) else 130
    if code == 1 and isinstance(error.__context__, KeyboardInterrupt):  # as Lightning ends on Ctrl-C
        code = 130
    if code in signals.INTERRUPTED and rank() == 0:
        print("athanor: interrupted; the same command goes on", file=sys.stderr)
    return code if isinstance(code, int) else 0 if code is None else 1


def _complain(error: BaseException, text: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"athanor: {text}", file=sys.stderr)
