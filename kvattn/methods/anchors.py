"""KVCOMM's anchors: past placeholders with the differences that context made to their KV (arXiv 2510.12872).

Weights, gate and eviction follow the published formulas; the pools are plain data, saved as safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from kvattn.errors import KvattnError
from kvattn.files import read_json, write_atomically

TENSORS = ("keys", "values", "key_change", "value_change", "after_keys", "after_values")


@dataclass
class Anchor:
    """One placeholder of one past question, as one consumer (the judge) saw it.

    keys, values:   [layers, kv heads, tokens, dim], its base KV, keys turned to positions 0, 1, 2, ...
    key_change, value_change: the same shape, real less base where it stood in the judge's prompt
    after_keys, after_values: [layers, kv heads, tokens after, dim], the same for the template text after it
    start, after_start: positions at which the changes were taken
    uses:           activations, for eviction
    file:           name of its file once it has one; it carries the hash of the content
    """

    question: str
    owner: str
    slot: int
    keys: Float[Tensor, "layers heads tokens dim"]
    values: Float[Tensor, "layers heads tokens dim"]
    key_change: Float[Tensor, "layers heads tokens dim"]
    value_change: Float[Tensor, "layers heads tokens dim"]
    after_keys: Float[Tensor, "layers heads after dim"]
    after_values: Float[Tensor, "layers heads after dim"]
    start: int
    after_start: int
    uses: int = 0
    file: str = field(default="", compare=False)

    @property
    def length(self) -> int:
        """Tokens of the placeholder."""
        return self.keys.shape[2]


@dataclass
class AnchorPool:
    """Anchors by owner ("question", or an agent), at most `size` an owner.

    size:   V, anchors an owner may keep; window: the least used of so many oldest is dropped
    """

    size: int = 5
    window: int = 5
    anchors: dict[str, list[Anchor]] = field(default_factory=dict)

    def of(self, owner: str, question: str) -> list[Anchor]:
        """The owner's anchors, less those of the question being judged."""
        return [a for a in self.anchors.get(owner, []) if a.question != question]

    def all(self, question: str, owner: Callable[[str], bool] = lambda _: True) -> list[Anchor]:
        """Anchors of all owners that match, less those of the question being judged."""
        return [a for name in self.anchors if owner(name) for a in self.of(name, question)]

    def add(self, anchor: Anchor) -> None:
        """Insert; before that, when the owner's pool is full, the least used of its oldest is dropped."""
        mine = self.anchors.setdefault(anchor.owner, [])
        if any(a.question == anchor.question for a in mine):
            return
        if len(mine) >= self.size:
            oldest = mine[: self.window]
            mine.remove(min(oldest, key=lambda a: a.uses))
        mine.append(anchor)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, name: str = "pool") -> Path:
        """Write the pool: a file for each anchor not yet there, and NAME.json, which is replaced atomically."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"size": self.size, "window": self.window, "anchors": []}
        for owner, anchors in self.anchors.items():
            for a in anchors:
                if not a.file or not (folder / a.file).exists():
                    data = save({k: getattr(a, k).contiguous() for k in TENSORS})
                    a.file = _file_name(data)
                    _write(folder / a.file, data)
                plain = {k: getattr(a, k) for k in ("question", "slot", "start", "after_start", "uses", "file")}
                index["anchors"].append({"owner": owner, **plain})
        _write(folder / f"{name}.json", json.dumps(index).encode())
        return folder / f"{name}.json"

    @staticmethod
    def load(folder: str | Path, name: str = "pool") -> AnchorPool:
        """Read a saved pool. Raises KvattnError, naming the file, for missing or damaged files."""
        from safetensors.torch import load

        path = Path(folder) / f"{name}.json"
        try:
            index = read_json(path)
            pool = AnchorPool(index["size"], index["window"])
            for entry in index["anchors"]:
                file = Path(entry["file"]).name
                data = path.with_name(file).read_bytes()
                if _file_name(data) != file:
                    raise KvattnError(f"the anchor file {path.with_name(file)} is damaged; make the pool again")
                pool.anchors.setdefault(entry["owner"], []).append(Anchor(**{**entry, "file": file, **load(data)}))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise KvattnError(f"cannot read the anchor pool {path}: {type(e).__name__}: {e}") from e
        return pool


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as e:
        raise KvattnError(
            f"{path} cannot be written ({e.strerror}); nothing that was finished is lost: make room, or name a folder "
            "that can be written, and run the same command again"
        ) from e


def _file_name(data: bytes) -> str:
    return f"anchor-{hashlib.sha256(data).hexdigest()[:20]}.safetensors"


def token_weights(
    base: Float[Tensor, "layers heads tokens dim"], anchors: Sequence[Float[Tensor, "layers heads more dim"]],
    temperature: float = 1.0,
) -> Float[Tensor, "anchors tokens"]:  # fmt: skip
    """Weights of anchors for each token of a placeholder: softmax over anchors of minus the mean absolute difference
    over layers, heads and channels, over the temperature. Anchors are at least as long as the placeholder."""
    n = base.shape[2]
    distance = torch.stack(
        [
            reduce((base.float() - a[:, :, :n].to(base.device).float()).abs(), "layer head token dim -> token", "mean")
            for a in anchors
        ]
    )
    return (-distance / temperature).softmax(0)


def channel_weights(
    base: Float[Tensor, "layers heads tokens dim"], anchors: Sequence[Float[Tensor, "layers heads more dim"]]
) -> Float[Tensor, "anchors layers heads dim"]:
    """Weights of anchors for the text after a placeholder: softmax over anchors of minus the Euclidean distance over
    the last tokens (as many as the placeholder has), for each layer, head and channel."""
    n = base.shape[2]
    if n == 0:
        return torch.full((len(anchors), *base.shape[:2], base.shape[3]), 1 / len(anchors), device=base.device)
    distance = torch.stack([(base.float() - a[:, :, -n:].to(base.device).float()).norm(dim=2) for a in anchors])
    return (-distance).softmax(0)


def is_new(
    values: Float[Tensor, "layers heads tokens dim"], anchors: Sequence[Anchor], gamma: float
) -> tuple[bool, Float[Tensor, " usable"], list[Anchor]]:
    """Whether a new text must become an anchor, decided on its base values.

    Returns (becomes an anchor, similarity over the usable anchors, those anchors). Usable: at least as long as the
    text. It becomes an anchor with at most one anchor, or at most one usable; else when the entropy of
    s = softmax(-Euclidean distance) exceeds gamma * log2(number of usable anchors)."""
    n = values.shape[2]
    usable = [a for a in anchors if a.length >= n]
    if len(anchors) <= 1 or len(usable) <= 1:
        return True, torch.empty(0), usable
    distance = torch.stack([(values.float() - a.values[:, :, :n].to(values.device).float()).norm() for a in usable])
    s = (-distance).softmax(0)
    entropy = -(s * s.clamp_min(1e-30).log2()).sum()
    return bool(entropy > gamma * torch.tensor(float(len(usable))).log2()), s, usable


def top_mass(s: Float[Tensor, " usable"], p: float) -> list[int]:
    """Indices of the fewest most similar anchors whose mass reaches p."""
    order = torch.argsort(s, descending=True)
    total = torch.cumsum(s[order], 0)
    return order[: int((total < p).sum()) + 1].tolist()
