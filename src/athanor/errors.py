"""The one exception whose text a user is meant to read."""


class UserError(ValueError):
    """Something a user can cause and mend: one sentence that says what is wrong and what to do (exit code 2)."""
