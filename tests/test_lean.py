"""A training's process does not import what only metrics want that nothing here names."""

import subprocess
import sys

CODE = """
import sys
from athanor import lean
with lean.imports():
    import athanor.train
print(sorted({"matplotlib", "scipy.signal", "transformers"} & set(sys.modules)))
from lightning_utilities.core.imports import RequirementCache, package_available
print(bool(RequirementCache("packaging")), package_available("scipy"), bool(RequirementCache("scipy>=1")))
import torch, torchmetrics
print(float(torchmetrics.MeanMetric()(torch.tensor([1.0, 3.0]))))
"""
NAMED = """
import sys
from athanor import lean
with lean.imports({"callbacks": {"_target_": "torchmetrics.text.bert.BERTScore"}}):
    import torchmetrics
print("scipy.signal" in sys.modules)
"""


def test_lightning_comes_without_plots_and_transformers_and_all_else_finds_them() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["[]", "True True True", "2.0"]


def test_what_an_experiment_names_has_all_it_wants() -> None:
    done = subprocess.run([sys.executable, "-c", NAMED], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True\n"
