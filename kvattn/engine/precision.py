"""A model in low precision, run as if its weights were float32: how its own rounding is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from kvattn.engine import parts

HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model) -> Iterator[None]:
    """The model computes in float32 until the block ends, on its own weights: a layer at a time is converted while it
    runs, and then has its very tensors back. A model with weights that are not at hand (offloaded), quantised or not of
    a floating type stays as it is."""
    with ExitStack() as stack:
        kinds = {p.dtype for p in model.parameters()}
        away = any(p.device.type == "meta" for p in model.parameters())
        if not away and not parts.quantised(model) and kinds & {*HALVES} and kinds <= {*HALVES, torch.float32}:
            ends = (model.get_input_embeddings(), parts.last_norm(model), model.get_output_embeddings())
            for module in (*parts.layers(model), *ends):
                held: list[tuple[nn.Parameter, Tensor]] = []
                before = module.register_forward_pre_hook(partial(_convert, held))
                after = module.register_forward_hook(partial(_return, held), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
        yield


def _convert(held: list, module: nn.Module, _args: tuple) -> None:
    with torch.inference_mode(False):  # what is made in that mode cannot take a parameter's place
        for parameter in module.parameters():
            if parameter.dtype in HALVES:
                held.append((parameter, parameter.data))
                parameter.data = parameter.data.float()


def _return(held: list, _module: nn.Module, _args: tuple, _output: object) -> None:
    for parameter, data in held:
        parameter.data = data
    held.clear()
