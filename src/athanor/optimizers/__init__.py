"""Optimizers that torch does not have in one piece. Torch's own (AdamW, SGD, ...) are named directly in a config.

What `Algorithm.configure_optimizers` puts into the groups (`weight_decay`, `lr_factor`, `width_factor`, `hidden`) any
of them may read; the learning rates it scales itself.
"""

from athanor.optimizers.adafactor import Adafactor
from athanor.optimizers.lamb import LAMB
from athanor.optimizers.lion import Lion
from athanor.optimizers.muon import MuonWithAdamW
from athanor.optimizers.schedule_free import schedule_free_adamw

__all__ = ["LAMB", "Adafactor", "Lion", "MuonWithAdamW", "schedule_free_adamw"]
