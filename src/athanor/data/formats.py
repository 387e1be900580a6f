"""Records of the field's public formats -> messages.

Instructions: messages / conversations (OpenAI, ShareGPT), Alpaca, prompt-completion, question-answer; a preference
without such an answer counts as its chosen one.
Preferences: TRL (standard and conversational, explicit or implicit prompt), HH (one string with "\\n\\nHuman:" turns),
Alpaca with chosen and rejected, ShareGPT with chosen and rejected.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from athanor.corpus.files import Input, decode
from athanor.data.chat import Message
from athanor.errors import UserError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
          "system": "system", "bot": "assistant", "prompter": "user"}  # fmt: skip
# tool traffic is text a model reads or writes like any other turn
_ROLES |= {"function_call": "assistant", "observation": "user", "tool": "user", "function": "user"}


class Pair(NamedTuple):
    prompt: list[Message]
    chosen: str
    rejected: str


def read_records(files: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", record) of JSON Lines files (.jsonl, .gz, .zst) or JSON arrays (.json), hashes verified inside
    runs.

    Raises:
        UserError: a file is missing, damaged, not UTF-8, or a line is not a JSON object.
    """
    from athanor.runs.run import verified

    for name in files:
        path = verified(Path(name))
        with Input(path) as file:
            if path.suffix == ".json":
                for i, record in enumerate(_array(decode(file.read(), path), path)):
                    yield f"{path.name}[{i}]", _object(record, f"{path}[{i}]")
                continue
            for number, offset, line in file.lines():
                if line.strip():
                    where = f"{path}:{number}"
                    yield f"{path.name}:{number}", _object(_parse(decode(line, path, offset), where), where)


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg}); mend or remove the line.") from None


def _array(text: str, path: Path) -> list[Any]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno} is not JSON ({error.msg}); mend it, or name it .jsonl.") from None
    if not isinstance(records, list):
        raise UserError(f"{path} is not an array of records; write one, or JSON Lines in a .jsonl file.")
    return records


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object with named fields; mend or remove it.")
    return record


def to_messages(record: dict[str, Any], where: str = "record") -> list[Message]:
    """The conversation of an instruction record; ends with the assistant's turn.

    Raises:
        UserError: the fields match no known format, and the sentence names the fields that were there; or a text is
            missing.
    """
    messages = _conversation(record, where)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise UserError(f"{where} has no assistant turn to learn from; remove it or add an answer.")
    return messages


def to_pair(record: dict[str, Any], where: str = "record") -> Pair:
    """Prompt, chosen and rejected answer of a preference record.

    Raises:
        UserError: as `to_messages`; also where chosen and rejected do not share their prompt.
    """
    if "chosen" not in record or "rejected" not in record:
        raise UserError(f"{where} has the fields {sorted(record)} but a preference needs `chosen` and `rejected`.")
    chosen, rejected = record["chosen"], record["rejected"]
    prompt = _prompt(record, where) if _has_prompt(record) else []
    if not prompt and isinstance(chosen, str) and isinstance(rejected, str) and "\n\nAssistant:" in chosen:
        chosen, rejected = _hh(chosen, where), _hh(rejected, where)
    if isinstance(chosen, list) and isinstance(rejected, list):
        (*shared, ours), (*other, theirs) = _turns(chosen, where), _turns(rejected, where)
        if shared != other or {ours["role"], theirs["role"]} != {"assistant"}:
            raise UserError(f"{where}: chosen and rejected do not answer the same conversation; mend or remove it.")
        if prompt and prompt[-1] not in shared:  # else the prompt is repeated in both, perhaps with a system message
            shared = prompt + shared
        return Pair(shared, ours["content"], theirs["content"])
    if not prompt:
        raise UserError(f"{where} has the fields {sorted(record)} but none of {', '.join(_PROMPTS)}.")
    return Pair(prompt, _answer(chosen, where), _answer(rejected, where))


def to_prompt(record: dict[str, Any], where: str = "record") -> list[Message]:
    """The conversation up to the assistant's last turn, for generation.

    Raises:
        UserError: as `to_pair`.
    """
    return to_pair(record, where).prompt if "chosen" in record else _prompt(record, where)


_PROMPTS = ("messages", "conversations", "prompt", "instruction", "question", "query")
_ANSWERS = (("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("prompt", "response"),
            ("query", "response"))  # fmt: skip


def _conversation(record: dict[str, Any], where: str) -> list[Message]:
    for key in ("messages", "conversations"):
        if isinstance(record.get(key), list):
            return _system(record, where) + _turns(record[key], where)
    for ask, answer in _ANSWERS:
        if ask in record and answer in record:
            return [*_prompt(record, where), *_turns_of(record[answer], "assistant", where)]
    if "chosen" in record and "rejected" in record:
        pair = to_pair(record, where)
        return [*pair.prompt, Message(role="assistant", content=pair.chosen)]
    raise UserError(
        f"{where} has the fields {sorted(record)}, which is no instruction format known here: give `messages` or "
        "`conversations`, `instruction` + `output`, `prompt` + `completion`, or `question` + `answer`."
    )


def _has_prompt(record: dict[str, Any]) -> bool:
    return any(key in record for key in _PROMPTS)


def _prompt(record: dict[str, Any], where: str) -> list[Message]:
    """The turns to answer: a last turn of the assistant is left out."""
    for key in _PROMPTS:
        if record.get(key) is not None:
            turns = _turns_of(record[key], "user", where)
            if isinstance(record[key], list) and turns[-1]["role"] == "assistant":
                turns.pop()
            if not turns:
                raise UserError(f"{where} has no turn to answer; remove it or add a question.")
            if extra := str(record.get("input") or "").strip():
                turns[-1]["content"] += f"\n{extra}"
            return _system(record, where) + turns
    raise UserError(f"{where} has the fields {sorted(record)} but none of {', '.join(_PROMPTS)}.")


def _system(record: dict[str, Any], where: str) -> list[Message]:
    return _turns_of(record["system"], "system", where) if record.get("system") else []


def _turns_of(value: Any, role: str, where: str) -> list[Message]:
    """A list of turns, or one text as the turn of a role."""
    return _turns(value, where) if isinstance(value, list) else [Message(role=role, content=_text(value, where))]


def _turns(turns: list[Any], where: str) -> list[Message]:
    out = []
    for turn in turns:
        if not isinstance(turn, dict) or (role := turn.get("role", turn.get("from"))) not in _ROLES:
            raise UserError(f"{where}: a turn needs a role among {sorted(_ROLES)}, not {str(turn)[:80]}.")
        out.append(Message(role=_ROLES[role], content=_text(turn.get("content", turn.get("value")), where)))
    if not out:
        raise UserError(f"{where} has a conversation without turns; remove it.")
    return out


def _answer(value: Any, where: str) -> str:
    """A text, or the content of a turn or of the last of several."""
    if isinstance(value, dict):
        value = [value]
    return _turns(value, where)[-1]["content"] if isinstance(value, list) else _text(value, where)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where} has {str(value)[:80]!r} in place of a text; mend or remove it.")
    return str(value)


def _hh(text: str, where: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if len(parts) < 3:
        raise UserError(f"{where}: the text has no '\\n\\nHuman:' and '\\n\\nAssistant:' turns.")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[r], "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2])]
