"""Learned repair: an adapter on the computed tokens of another method's plan, so that a judge reads kept candidates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import ROLES, PromptLayout
from kvattn.engine.plan import KVPlan
from kvattn.engine.reach import Adapter, Reach
from kvattn.errors import KvattnError
from kvattn.files import read_json, sha256, write_atomically
from kvattn.methods.base import Method
from kvattn.text import hash_of

if TYPE_CHECKING:
    from kvattn.questions.prompt import JudgePrompt

FORMAT = "kvattn-repair-1"
CARD, WEIGHTS = "repair.json", "repair.safetensors"
_NEEDED = ("format", "base", "roles", "scale", "weights", "readout", "sha256")
_READOUTS = {"label_scores": "label", "branch_scores": "yesno"}


@dataclass(frozen=True)
class Repair:
    """A trained repair.

    base:    the method whose plan it repairs, as its label
    roles:   the adapter acts on computed tokens of segments with these roles
    adapter: what was learned
    weights: which weights the judge has (`Engine.identity`); None where nobody knows
    readout: the name of the reader of the scores that were taught, such as "label_scores"
    record:  how it was trained, JSON-able: recipe, seed, hashes
    """

    base: str
    roles: tuple[str, ...]
    adapter: Adapter
    weights: str | None
    readout: str
    record: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write the folder that `load` reads, in half precision. Raises KvattnError where it cannot be written, and for
        numbers that are not finite there."""
        from safetensors.torch import save

        halves = {name: t.detach().half().contiguous().cpu() for name, t in self.adapter.tensors().items()}
        if bad := [name for name, t in halves.items() if not bool(torch.isfinite(t).all())]:
            raise KvattnError(
                f"the training diverged: {bad[0]} is not finite in half precision; train with a lower rate (--rate) "
                "into another folder"
            )
        data = save(halves)
        card = {
            "format": FORMAT,
            "base": self.base,
            "roles": list(self.roles),
            "scale": self.adapter.scale,
            "weights": self.weights,
            "readout": self.readout,
            **self.record,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / WEIGHTS, data)
            write_atomically(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())
        except OSError as e:
            raise KvattnError(f"{folder} cannot be written ({e.strerror}); name a folder that can be written") from e
        return folder

    @staticmethod
    def load(folder: Path) -> Repair:
        """Read a folder. Raises KvattnError for one that is missing, damaged or of another kind."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            card: Any = read_json(folder / CARD)
            if lacking := [k for k in _NEEDED if k not in card]:
                raise ValueError(f"{CARD} lacks {lacking[0]!r}")
            taught = card.get("questions", [])
            if not isinstance(taught, list) or not all(isinstance(x, str) for x in taught):
                raise ValueError(f"'questions' of {CARD} is no list of hashes")
            data = (folder / WEIGHTS).read_bytes()
            if card["format"] != FORMAT:
                raise ValueError(f"format {card['format']!r}")
            if hashlib.sha256(data).hexdigest() != card["sha256"]:
                raise ValueError(f"{WEIGHTS} is not the file that {CARD} describes")
            tensors, roles = {name: t.float() for name, t in load(data).items()}, tuple(card["roles"])
            if odd := [r for r in roles if r not in ROLES]:
                raise ValueError(f"role {odd[0]!r}")
            if bad := [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]:
                raise ValueError(f"numbers that are not finite in {bad[0]}")
            adapter = Adapter.of(tensors, float(card["scale"]))
            record = {k: v for k, v in card.items() if k not in _NEEDED or k == "sha256"}
            return Repair(str(card["base"]), roles, adapter, card["weights"], str(card["readout"]), record)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            raise KvattnError(
                f"cannot read the repair {folder} ({e}); train one into that folder: kvattn repair train"
            ) from e


def reach_of(plan: KVPlan, roles: Sequence[str], adapter: Adapter) -> KVPlan:
    """The plan with the adapter on its computed tokens of these roles."""
    return replace(plan, reach=Reach(adapter, plan.layout.mask(*roles) & (plan.depth > 0)))


@dataclass(frozen=True)
class Repaired(Method):
    """Another method's plan, some of whose computed tokens carry a trained adapter; what is kept is the base model's.

    Trained by `kvattn repair train`; a repair holds for the weights and the readout that it was trained with.

    Parameters
    ----------
    folder : what `kvattn repair train` wrote.
    """

    folder: str
    base: Method = field(compare=False, repr=False)
    repair: Repair = field(compare=False, repr=False)

    name = "repaired"
    source = "kvattn, after KVLink (arXiv 2502.16002) and activated LoRA (arXiv 2504.12397)"
    keeps = False
    lone = "folder"

    @classmethod
    def build(cls, values: dict[str, Any], get: Callable[[str], Method]) -> Repaired:
        """The method of the repair in `values["folder"]`. Raises KvattnError where it cannot be read."""
        if not values.get("folder"):
            raise KvattnError(
                "method 'repaired' needs a repair: train one (kvattn repair train) and give its folder, repaired:FOLDER"
            )
        repair = Repair.load(Path(values["folder"]))
        try:
            base = get(repair.base)
        except KvattnError as e:
            raise KvattnError(f"{CARD} of the repair {values['folder']}: {e}") from e
        return cls(values["folder"], base, repair)

    @property
    def files(self) -> dict[str, str]:
        return {**super().files, self.folder: sha256(Path(self.folder) / CARD)}  # which holds that of the numbers

    def prompt(self, prompt: JudgePrompt) -> JudgePrompt:
        return self.base.prompt(prompt)

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The repaired plan. Raises KvattnError for another judge or readout than the repair was trained with."""
        self.require(layout, engine)
        return reach_of(self.base.plan(layout, blocks, engine), self.repair.roles, self.repair.adapter)

    def require(self, layout: PromptLayout, engine: Engine) -> None:
        """Raises KvattnError for another judge or readout than the repair was trained with."""
        super().require(layout, engine)
        repair, reader = self.repair, reader_of(layout)
        for what, of, here in (("weights", repair.weights, engine.identity), ("readout", repair.readout, reader)):
            if hash_of(of) != hash_of(here):
                of, here = (_READOUTS.get(str(x), x) for x in (of, here))
                raise KvattnError(
                    f"the repair {self.folder} was trained for the {what} {of!r}, not {here!r}; train one for these"
                )
        repair.adapter.check(engine.model.get_decoder())


def reader_of(layout: PromptLayout) -> str:
    """What reads the scores of a layout, by name."""
    return "generate" if layout.reader is None else layout.reader.__name__
