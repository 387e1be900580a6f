"""Our SentencePiece model as a tokenizer of Hugging Face's, which gives the same ids.

SentencePiece writes a space as U+2581; here pieces hold the space itself, so that a text's own U+2581 is an unknown
character and becomes bytes, as with us. Nothing is normalised, split or put before.

The chat roles are special tokens: what a chat template writes becomes their ids. So does the same text from a user:
where that must not be, encode it with `split_special_tokens=True`.

Of a unigram model two segmentations may score the same, as runs of one character do; SentencePiece then decides by its
float32 rounding, so there the same pieces may come in another order. Byte-pair encodings have no such ties.
"""

import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from athanor.corpus.tokenizer import META_SPACE, SPECIAL, Tokenizer
from athanor.models.streams import replace

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NEVER = -1e5
"""Score of a piece that no text may become, beside -20 for the rarest of those it may."""


def export_tokenizer(model: Path, directory: Path, context: int | None = None) -> None:
    """Writes tokenizer.json and tokenizer_config.json, for transformers' AutoTokenizer.

    Args:
        model: our tokenizer.model.
        context: the model's, for the config.

    Raises:
        UserError: no tokenizer of ours.
    """
    tokenizer = Tokenizer(model)
    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(model).read_bytes())  # type: ignore[attr-defined]
    kinds = proto.SentencePiece
    pieces = [
        piece.piece if piece.type == kinds.BYTE else piece.piece.replace(META_SPACE, " ") for piece in proto.pieces
    ]
    learnt = [piece.type == kinds.NORMAL for piece in proto.pieces]
    scores = [piece.score for piece in proto.pieces]
    unigram = proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM
    unknown = pieces[tokenizer.unk_id]
    core: dict[str, Any]
    if unigram:
        vocabulary = [[piece, score if own else NEVER] for piece, score, own in zip(pieces, scores, learnt)]
        core = {"type": "Unigram", "unk_id": tokenizer.unk_id, "vocab": vocabulary, "byte_fallback": True}
    else:
        core = {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": True, "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)}, "merges": merges(pieces, scores, learnt),
        }  # fmt: skip
    names = {"pad_token": tokenizer.pad_id, "bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id,
             "unk_token": tokenizer.unk_id}  # fmt: skip
    marked = sorted({*names.values(), *tokenizer.special.values()})
    added = [
        {"id": index, "content": pieces[index], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for index in marked
    ]  # fmt: skip
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}, "model": core,
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", **{name: pieces[index] for name, index in names.items()},
        "additional_special_tokens": list(SPECIAL), "clean_up_tokenization_spaces": False, "padding_side": "left",
        "model_max_length": context or 10**30, "chat_template": TEMPLATE,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", whole), ("tokenizer_config.json", config)):
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        replace(directory / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]


def merges(pieces: list[str], scores: list[float], learnt: list[bool]) -> list[list[str]]:
    """Pairs of pieces in the order in which they are joined: as the pieces that they make, best score first."""
    place = {piece: index for index, (piece, own) in enumerate(zip(pieces, learnt)) if own}
    found = []
    for piece, index in place.items():
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in place and piece[i:] in place]
        found += [(-scores[index], place[first], place[second]) for first, second in pairs]
    return [[pieces[first], pieces[second]] for _, first, second in sorted(found)]
