"""The one exception whose text a user is meant to read, and the refusal of a constructor's arguments."""


class UserError(ValueError):
    """Something a user can cause and mend: one sentence that says what is wrong and what to do (exit code 2)."""


def require(holds: bool, sentence: str) -> None:
    """Raises ValueError with the sentence, which names the config keys, unless it holds."""
    if not holds:
        raise ValueError(sentence)
