import pytest

from athanor.corpus.tokenizer import Tokenizer
from small import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path) -> Tokenizer:
    return Tokenizer(tokenizer_path)
