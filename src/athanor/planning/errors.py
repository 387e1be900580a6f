"""What planning cannot plan, which need not be wrong."""

from athanor.errors import UserError


class NoPlanError(UserError):
    """There is no plan for this experiment or cluster, though it may well train."""
