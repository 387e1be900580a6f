"""SLURM's own commands, with what they complain of as a UserError."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from athanor.errors import UserError


def call(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        UserError: there is no such command here, or no cluster, it fails, or slurmctld does not answer within a minute.
    """
    if not shutil.which(words[0]):
        raise UserError(
            f"there is no `{words[0]}` here: do this where your cluster's jobs are submitted, or rehearse on this "
            'machine with eval "$(slurm/local-cluster up)"'
        )
    try:
        done = subprocess.run(
            words, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"`{words[0]}` did not answer within a minute; is slurmctld up? See `scontrol ping`") from None
    if done.returncode and re.search("failed to fetch config|cannot stat file", done.stderr):
        raise UserError(
            f"`{words[0]}` is here but knows of no cluster: set SLURM_CONF to its slurm.conf, or rehearse on this "
            'machine with eval "$(slurm/local-cluster up)"'
        )
    if done.returncode:
        raise UserError(f"{words[0]} says: {' '.join(done.stderr.split())}")
    return done.stdout
