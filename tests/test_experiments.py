"""Every experiment of the repository composes, and every node of it suits the constructor that it names."""

import pytest

from athanor import catalog, config

ENTRIES = [entry.name for entry in catalog.entries() if entry.kind in catalog.KINDS]


@pytest.mark.parametrize("name", ENTRIES)
def test_it_composes_and_checks(name):
    experiment = config.load(name)
    assert config.check(experiment.config) == []
    assert catalog.find(name).description
