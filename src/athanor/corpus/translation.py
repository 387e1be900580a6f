"""Back-translation: into another language and back, by models given by path (Sennrich et al. 2016, arXiv:1511.06709).

No model comes with athanor. Two directories of Hugging Face translation models, such as of opus-mt-en-zh and
opus-mt-zh-en, are inputs of the experiment; anything that is called with sentences and a seed and gives as many
sentences can stand in their place.
"""

import os
import random
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from athanor.corpus.augment import SENTENCE, Augment
from athanor.corpus.documents import Document
from athanor.corpus.normalize import rare
from athanor.errors import UserError

EDGES = re.compile(r"(\s*)(.*?)(\s*)", re.DOTALL)


class Translate(Protocol):
    def __call__(self, sentences: list[str], seed: int) -> list[str]: ...


class HuggingFace:
    """A sequence-to-sequence model of transformers, on the CPU.

    Args:
        model: its directory, or the files in it.
        beams: of the search.
        sampling: draw tokens instead, so that several copies differ.
        max_new_tokens: of a sentence.
        prefix: before each sentence, as T5 wants it ("translate English to German: ").
    """

    def __init__(
        self,
        model: str | list[str],
        beams: int = 1,
        sampling: bool = False,
        max_new_tokens: int = 256,
        prefix: str = "",
    ):
        folder = model if isinstance(model, str) else os.path.commonpath([str(Path(path).parent) for path in model])
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise UserError(f"{folder} has no config.json of a translation model; name the directory that has it.")
        if beams < 1 or max_new_tokens < 1:
            raise UserError(f"translation: beams {beams} and max_new_tokens {max_new_tokens} must be at least 1.")
        self.options = {"num_beams": beams, "do_sample": sampling, "max_new_tokens": max_new_tokens}
        self.prefix = prefix

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        transformers = rare("transformers", "augment")
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(self.folder, local_files_only=True)
        return tokenizer, model.eval()

    def __call__(self, sentences: list[str], seed: int) -> list[str]:
        import torch

        tokenizer, model = self.parts
        translated = []
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            for sentence in sentences:  # one by one: padding would change sums, and so now and then a word
                ids = tokenizer(self.prefix + sentence, return_tensors="pt", truncation=True)
                if not ids["input_ids"].numel():
                    translated.append("")
                    continue
                made = model.generate(ids["input_ids"], attention_mask=ids["attention_mask"], **self.options)
                translated.append(tokenizer.decode(made[0], skip_special_tokens=True))
        return translated


class BackTranslation(Augment):
    """Args:
    there, back: translate into the other language, and from it.
    languages: of the documents that are translated.
    """

    name, method = "back-translation", "translation"

    def __init__(
        self,
        there: Translate,
        back: Translate,
        languages: list[str],
        seed: int,
        copies: int = 1,
        share: float = 1.0,
        only: list[str] | None = None,
    ):
        super().__init__(seed, copies, share, only)
        self.there, self.back, self.languages = there, back, languages

    def concerns(self, document: Document) -> bool:
        return super().concerns(document) and document.language in self.languages

    def changed(self, document: Document, rng: random.Random) -> str:
        edges = [EDGES.fullmatch(sentence) for sentence in SENTENCE.findall(document.text)]
        found = [edge.groups() for edge in edges if edge]
        sentences = [sentence for _, sentence, _ in found if sentence]
        seed = rng.getrandbits(32)
        returned = self.back(self.there(sentences, seed), seed)
        if len(returned) != len(sentences):
            raise UserError(f"{self.name}: {len(sentences)} sentences became {len(returned)}; correct the translators.")
        again = iter(returned)
        return "".join(f"{before}{next(again) if sentence else ''}{after}" for before, sentence, after in found)
