"""Whether services know who is at work here."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse


def wandb() -> bool:
    """Whether W&B has a key: $WANDB_API_KEY, or `wandb login` has been here."""
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc(os.environ.get("NETRC")).authenticators(host or ""))
    except (OSError, netrc.NetrcParseError):
        return False
