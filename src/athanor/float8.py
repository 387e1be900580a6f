"""Matrix products of the blocks in 8-bit floats (precision=fp8-mixed), by torchao: operands are rounded to e4m3, scaled
row by row (Micikevicius et al. 2022, arXiv:2209.05433); what is not such a product is as in bf16-mixed.

Tensor cores multiply so from compute capability 8.9 on (H100, L40). Elsewhere the same rounding is emulated: the
numbers are those of fp8, the speed is not.
"""

import dataclasses
import logging

import torch
from torch import nn

from athanor.errors import UserError
from athanor.models.transformer import Block, Transformer

NAME = "fp8-mixed"
MULTIPLE = 16
"""What the products' sizes must be divisible by."""


def beyond(precision: str) -> str:
    """The precision of all that is not an 8-bit product."""
    return "bf16-mixed" if precision == NAME else precision


def native(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def use_float8(model: nn.Module, device: torch.device) -> int:
    """Lets the linear layers of a model's blocks multiply in float8. Parameters, their names and their precision stay.

    Returns:
        the number of those layers.

    Raises:
        UserError: the extra is missing; the model has no layer of such a size.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it tells of each kernel that was not built for this machine
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ModuleNotFoundError:
        raise UserError(f"precision={NAME} needs an extra: pip install 'athanor[fp8]'.") from None
    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name("rowwise"), emulate=not native(device), pad_inner_dim=True
    )
    converted: list[str] = []

    def fits(layer: nn.Module, name: str) -> bool:
        assert isinstance(layer, nn.Linear)
        if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
            return False
        converted.append(name)
        return True

    for module in model.modules():
        if isinstance(module, Transformer):
            for block in module.blocks:
                assert isinstance(block, Block)
                convert_to_float8_training(block, module_filter_fn=fits, config=config)
    if not converted:
        raise UserError(
            f"precision={NAME} finds no layer to multiply in: set model.width and model.hidden to multiples of "
            f"{MULTIPLE}, or precision=bf16-mixed."
        )
    return len(converted)
