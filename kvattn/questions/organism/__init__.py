"""Model organisms: tiny judges, trained for one mechanism, whose need to see the other candidates is known.

Importing this package loads neither weights nor torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvattn.errors import unknown

if TYPE_CHECKING:
    from kvattn.questions.prompt import JudgePrompt


ALIASES = {"organism-unsafe": "max-window", "organism-safe": "max-full", "organism-relational": "odd"}


def template_of(model_folder: str | Path) -> str | None:
    """Name of the template a model was trained on, from the kvattn.json beside its weights; None where there is none
    (then any template will do)."""
    record = Path(model_folder) / "kvattn.json"
    return json.loads(record.read_text(encoding="utf-8")).get("template") if record.is_file() else None


def problems(name: str, n: int, seed: int = 0, candidates: int = 4) -> list[JudgePrompt]:
    """`n` judge prompts of the organism's task with known truth, each with `candidates` candidates.

    The best candidate's slot is uniform. The same seed gives the same problems; none of them were trained on (training
    draws from other seeds, and coincidence is as likely as drawing the same prompt twice)."""
    from kvattn.questions.organism.tasks import TASKS

    task = TASKS.get(ALIASES.get(name, name))
    if task is None:
        raise unknown("organism", name, (*TASKS, *ALIASES))
    return task.problems(n, seed, candidates)
