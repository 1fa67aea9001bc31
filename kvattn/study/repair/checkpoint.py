"""Where a training stands, in one file that is replaced whole: numbers, the optimizer's moments, notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvattn.errors import KvattnError
from kvattn.files import write_atomically
from kvattn.text import hash_of

FILE = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class Checkpoint:
    """The training in a folder.

    of:     all that decides its steps, JSON-able; a folder that holds the training of something else is refused
    step:   steps taken
    notes:  what else the next step needs or the record tells, JSON-able
    """

    def __init__(self, folder: Path, of: dict[str, Any]) -> None:
        self.file, self.of = folder / FILE, json.dumps(of, sort_keys=True)
        self.step, self.notes, self._held = 0, dict[str, Any](), dict[str, Tensor]()
        if self.file.exists():
            self._read()

    def _read(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, "pt") as f:
                said: Any = f.metadata() or {}
                self._held = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            of, self.step, self.notes = said["of"], int(said["step"]), json.loads(said["notes"])
        except (OSError, ValueError, KeyError, SafetensorError) as e:
            raise KvattnError(f"cannot read the training in {self.file} ({e}); delete it to begin anew") from e
        before, now = ({**x, "weights": hash_of(x.get("weights"))} for x in map(json.loads, (of, self.of)))
        if odd := next((k for k in now if before.get(k) != now[k]), None):
            said = f"{odd} {before.get(odd)!r}, not {now[odd]!r}" if odd != "data" else "other questions"
            raise KvattnError(
                f"{self.file.parent} holds the training of {said}; name another folder (--out), or say the same again"
            )

    def restore(self, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Numbers by name, and their moments, become what was saved; where nothing was, they stay."""
        with torch.no_grad():
            for name, x in trained.items():
                if self._held:
                    x.copy_(self._held[name])
        for name, x in trained.items():
            if f"{MOMENTS[0]}.{name}" not in self._held:
                continue
            state = {m: self._held[f"{m}.{name}"].to(x.device).clone() for m in MOMENTS}
            optimizer.state[x] = {"step": torch.tensor(float(self.step)), **state}

    def save(self, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write all of it. Raises KvattnError where that is not possible."""
        from safetensors.torch import save

        tensors = {name: x.detach().cpu().contiguous() for name, x in trained.items()}
        for name, x in trained.items():
            tensors |= {
                f"{m}.{name}": optimizer.state[x][m].cpu().contiguous() for m in MOMENTS if x in optimizer.state
            }
        said = {"of": self.of, "step": str(self.step), "notes": json.dumps(self.notes)}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, save(tensors, said))
        except OSError as e:
            raise KvattnError(f"{self.file} cannot be written ({e.strerror}); make room, and run it again") from e
