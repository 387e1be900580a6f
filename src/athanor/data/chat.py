"""The chat template: how messages become tokens, and which of them the model is taught to say.

    <bos> <|system|> text <|end|> <|user|> text <|end|> <|assistant|> text <|end|> ...

The role marks are single tokens that no text can spell. Only the assistant's text and the <|end|> after it are taught.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from athanor.corpus.tokenizer import Tokenizer

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"


class Message(TypedDict):
    role: str
    content: str


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each text, every distinct text encoded once."""
    distinct = list(dict.fromkeys(texts))
    table = dict(zip(distinct, tokenizer.encode_batch(distinct)))
    return [table[text] for text in texts]


def render(conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, taught) of each conversation: int32 and bool [T]."""
    pieces = iter(encode_texts([m["content"] for messages in conversations for m in messages], tokenizer))
    end = tokenizer.special[END]
    rendered = []
    for messages in conversations:
        ids, taught = [tokenizer.bos_id], [False]
        for message in messages:
            text, speaks = next(pieces), message["role"] == "assistant"
            ids += [tokenizer.special[ROLES[message["role"]]], *text, end]
            taught += [False] + [speaks] * (len(text) + 1)
        rendered.append((np.asarray(ids, np.int32), np.asarray(taught)))
    return rendered


def render_prompts(conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each conversation with the assistant's mark at the end: what a model is asked to continue."""
    opening = tokenizer.special[ROLES["assistant"]]
    return [[*ids.tolist(), opening] for ids, _ in render(conversations, tokenizer)]


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    return render_prompts([messages], tokenizer)[0]
