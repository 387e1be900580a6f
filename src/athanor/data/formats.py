"""Records of the field's public formats -> messages.

Instructions: messages / conversations (OpenAI, ShareGPT), Alpaca, prompt-completion, question-answer.
Preferences: TRL (standard and conversational, explicit or implicit prompt), HH (one string with "\\n\\nHuman:" turns),
Alpaca with chosen and rejected, ShareGPT with chosen and rejected.
"""

import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

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


class _MissingFieldError(Exception):
    pass


def read_records(files: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", record) of JSON Lines files (.jsonl, .gz, .zst) or JSON arrays (.json), hashes verified inside
    runs.

    Raises:
        UserError: a file is missing, damaged, not UTF-8, or a line is not a JSON object.
    """
    from athanor.runs.store import verified

    for name in files:
        path = verified(Path(name))
        try:
            if path.suffix == ".json":
                for i, record in enumerate(json.loads(path.read_text("utf-8"))):
                    yield f"{path.name}[{i}]", _object(record, f"{path}[{i}]")
                continue
            with _open(path) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{path.name}:{number}", _object(_parse(line, path, number), f"{path}:{number}")
        except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise UserError(f"{path} is damaged or cut off ({error}); fetch it again.") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (byte {error.start} of a block); convert it to UTF-8 first."
            ) from None
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; correct the file name in `inputs` or in data.files.") from None


def _open(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb")), encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number} is not JSON ({error.msg}); mend or remove the line.") from None


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object with named fields; mend or remove it.")
    return record


def to_messages(record: dict[str, Any], where: str = "record") -> list[Message]:
    """The conversation of an instruction record; ends with the assistant's turn.

    Raises:
        UserError: the fields match no known format; the sentence names the fields that were there.
    """
    try:
        messages = _conversation(record)
    except _MissingFieldError:
        raise UserError(
            f"{where} has the fields {sorted(record)}, which is no instruction format known here: give `messages` or "
            "`conversations`, `instruction` + `output`, `prompt` + `completion`, or `question` + `answer`."
        ) from None
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
    if isinstance(chosen, str) and "\n\nAssistant:" in chosen and not _has_prompt(record):  # HH
        chosen, rejected = _hh(chosen, where), _hh(rejected, where)
    if isinstance(chosen, list) and isinstance(rejected, list):
        ours, theirs = _turns(chosen, where), _turns(rejected, where)
        prompt = _prompt(record, where) if _has_prompt(record) else ours[:-1]
        if not _has_prompt(record) and theirs[:-1] != ours[:-1]:
            raise UserError(
                f"{where}: chosen and rejected do not answer the same conversation; make their turns equal."
            )
        return Pair(prompt, ours[-1]["content"], theirs[-1]["content"])
    return Pair(_prompt(record, where), _text(chosen), _text(rejected))


def to_prompt(record: dict[str, Any], where: str = "record") -> list[Message]:
    """The conversation up to the assistant's last turn, for generation."""
    if "prompt" in record or "chosen" in record:
        return _prompt(record, where) if _has_prompt(record) else to_pair(record, where).prompt
    return to_messages(record, where)[:-1]


def _conversation(record: dict[str, Any]) -> list[Message]:
    for key in ("messages", "conversations"):
        if isinstance(record.get(key), list):
            turns = _turns(record[key], key)
            system = record.get("system")
            return [Message(role="system", content=system), *turns] if system else turns
    for ask, answer in (("instruction", "output"), ("prompt", "completion"), ("question", "answer"),
                        ("prompt", "response"), ("query", "response")):  # fmt: skip
        if ask in record and answer in record:
            extra = str(record.get("input") or "").strip()
            content = f"{record[ask]}\n{extra}" if extra else str(record[ask])
            turns = [Message(role="user", content=content), Message(role="assistant", content=str(record[answer]))]
            system = record.get("system")
            return [Message(role="system", content=system), *turns] if system else turns
    raise _MissingFieldError


def _turns(turns: list[dict[str, str]], where: str) -> list[Message]:
    out = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in _ROLES or content is None:
            raise UserError(
                f"{where}: a turn needs a role among {sorted(_ROLES)} and a content, not {sorted(turn)} {role}."
            )
        out.append(Message(role=_ROLES[role], content=str(content)))
    return out


def _has_prompt(record: dict[str, Any]) -> bool:
    return any(key in record for key in ("prompt", "messages", "conversations", "instruction", "question"))


def _prompt(record: dict[str, Any], where: str) -> list[Message]:
    for key in ("prompt", "messages", "conversations"):
        if isinstance(record.get(key), list):
            turns = _turns(record[key], where)
            return turns[:-1] if turns[-1]["role"] == "assistant" else turns
    for key in ("prompt", "instruction", "question"):
        if isinstance(record.get(key), str):
            extra = str(record.get("input") or "").strip()
            return [Message(role="user", content=f"{record[key]}\n{extra}" if extra else record[key])]
    raise UserError(
        f"{where} has the fields {sorted(record)} but none of prompt, messages, conversations, instruction."
    )


def _text(answer: Any) -> str:
    if isinstance(answer, dict):
        return str(answer.get("content", answer.get("value", "")))
    if isinstance(answer, list):
        return _text(answer[-1])
    return str(answer)


def _hh(text: str, where: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if len(parts) < 3:
        raise UserError(f"{where}: the text has no '\\n\\nHuman:' and '\\n\\nAssistant:' turns.")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[r], "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2])]
