"""Where the parts of a model of transformers are: what differs by architecture and is not measured stands here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kvattn.engine.devices import at_hand
from kvattn.errors import KvattnError


def config(model) -> Any:
    """The configuration of the part that reads and writes text."""
    return model.config.get_text_config(decoder=True)


def decoder(model) -> Any:
    """What turns ids into hidden states: embedding, layers, last norm."""
    found = model.get_decoder()
    return model.model if found is model else found


def layers(model) -> nn.ModuleList:
    """The decoder's layers. Raises KvattnError for a model that has none under their usual name."""
    found = getattr(decoder(model), "layers", None)
    if not isinstance(found, nn.ModuleList):
        name = type(model).__name__
        raise KvattnError(f"{name} keeps its layers where kvattn does not find them; take another judge")
    return found


def kernel(model) -> str:
    """The attention kernel that transformers itself would take: SDPA where the model can do without its scores."""
    return "sdpa" if type(model)._supports_sdpa else "eager"


def last_norm(model) -> nn.Module:
    """The norm after the last layer."""
    made = decoder(model)
    return made.norm if hasattr(made, "norm") else made.final_layernorm


def numbers(weight: Tensor) -> Tensor:
    """A weight as it is, or what a quantised one stands for."""
    return weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()


def quantised(model) -> bool:
    """Whether some of the weights are."""
    return any(type(p) not in (Tensor, nn.Parameter) for p in model.parameters())


def output_matrix(attention: nn.Module) -> Float[Tensor, "hidden inner"]:
    """The matrix that an attention's heads are put together with, in fp32."""
    module: Any = attention
    matrix = module.o_proj if hasattr(module, "o_proj") else module.dense
    with at_hand(matrix):
        return numbers(matrix.weight).float()


def experts(model) -> tuple[int, int] | None:
    """(experts that a token is computed by, all that there are), of every layer that has some; None without."""
    said = config(model)
    every = (getattr(said, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    used, count = getattr(said, "num_experts_per_tok", None), next((n for n in every if n), None)
    return (used, count) if used and count else None


def not_finite(model, within: nn.Module | None = None) -> str | None:
    """Name of the first of the weights, or of those of a module, that hold numbers that are not finite."""
    own = None if within is None else {id(module) for module in within.modules()}
    for path, module in model.named_modules():
        if own is None or id(module) in own:
            with at_hand(module, alone=True):
                for name, p in module.named_parameters(path, recurse=False):
                    if not bool(torch.isfinite(numbers(p)).all()):
                        return name
    return None


def active_parameters(model) -> int:
    """Weights of the layers that a token is computed with: of the experts, those that it is routed to."""
    chosen = experts(model)
    used, count = chosen or (1, 1)

    def active(parameter: nn.Parameter) -> int:
        routed = chosen is not None and parameter.dim() == 3 and len(parameter) == count
        return parameter.numel() * used // count if routed else parameter.numel()

    return sum(map(active, layers(model).parameters()))


def adds_heads_one_by_one(model) -> bool:
    """Whether what attention brings is added to the residual stream as it is: not normed as a whole, not multiplied."""
    normed = ("post_feedforward_layernorm", "post_self_attn_layernorm")
    layer = layers(model)[0]
    return not any(hasattr(layer, name) for name in normed) and getattr(layer, "residual_multiplier", 1) == 1


class _Given:
    """A decoder's answer of which the hidden states are all there is."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


def logits(model, hidden: Float[Tensor, "*batch tokens hidden"]) -> Float[Tensor, "*batch tokens vocabulary"]:
    """The model's logits of hidden states that have passed the last norm, in fp32: its own forward with the decoder's
    part given, so with whatever scale or cap it puts on them."""
    flat = hidden.flatten(0, -3) if hidden.dim() > 2 else hidden[None]
    with _answering(decoder(model), _Given(flat)):
        ids = torch.zeros(flat.shape[:2], dtype=torch.long, device=hidden.device)
        made = model.forward(input_ids=ids).logits.float()
    return made.view(*hidden.shape[:-1], made.shape[-1])


@contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """The module, which answers so whatever it is called with."""
    own = vars(module).get("forward")
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
