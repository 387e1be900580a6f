"""Lightning without what torchmetrics imports for metrics that nothing here names: a third of the time it takes.

Lightning asks for torchmetrics, which imports whatever its metrics could want and is installed: matplotlib for plots,
transformers for BERTScore, SciPy's signal processing for speech.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError

UNUSED = ("matplotlib", "scipy", "transformers")


@contextmanager
def imports(config: object = None) -> Iterator[None]:
    """Torchmetrics, where it is first imported within, takes these packages for not installed, and for good. It asks
    lightning_utilities, one of whose two functions is private: where a later release has no such, all is imported.

    Args:
        config: of an experiment; where it names a metric of torchmetrics, all is imported too.
    """
    from lightning_utilities.core import imports as asked

    find, version = getattr(asked, "package_available", None), getattr(asked, "_version", None)
    if "torchmetrics" in sys.modules or find is None or version is None or "torchmetrics." in str(config):
        yield
        return

    def available(name: str) -> bool:
        return name not in UNUSED and find(name)

    def version_of(name: str) -> str:
        if name in UNUSED:
            raise PackageNotFoundError(name)
        return version(name)

    vars(asked).update(package_available=available, _version=version_of)
    try:
        yield
    finally:
        vars(asked).update(package_available=find, _version=version)
