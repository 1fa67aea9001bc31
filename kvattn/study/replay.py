"""Is a replay the judge that it replays? Dense's picks beside the verdicts that a log recorded in production."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvattn.decision import ties
from kvattn.stats.chance import Against, against
from kvattn.stats.pairs import Picks, contents
from kvattn.study.run_folder.reader import Run
from kvattn.text import between, percent


@dataclass(frozen=True)
class Replay:
    """How often dense picks the text that production chose.

    found: agreement, chance, kappa and the rest, over questions; own_order: whether the pairs are those in the order
    that production showed, or, since none was judged in it, all; verdicts: how many the log has of these questions
    """

    found: Against
    pairs: int
    own_order: bool
    verdicts: int

    @property
    def holds(self) -> bool:
        """Whether dense agrees with production more often than judges that read nothing would."""
        return self.found.jcr.low > self.found.chance.value

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        x = self.found.jcr
        order = "in the order that it was shown" if self.own_order else "in other orders than it was shown"
        return (
            f"Dense picks what production chose in {percent(x.value)} of {self.pairs} judgements {order} "
            f"({between(x.low, x.high, 1, True, 'interval unknown')}); chance is {percent(self.found.chance.value)}."
        )


def replay(run: Run, method: str = "dense") -> Replay | None:
    """A run's picks beside the production verdicts of its questions (raw choices); None where the log had none."""
    said: dict[str, str] = run.manifest.get("verdicts") or {}
    if not said:
        return None
    picked = 'SELECT question_id, "order", slot FROM picks WHERE NOT calibrated AND method = ? AND slot IS NOT NULL'
    table: Any = run.sql(f"{picked} ORDER BY ALL", [method])
    known = run.asked
    table = table[[said.get(q) in known[q].ids for q in table["question_id"]]]  # a tie is none under other readouts
    if not len(table):
        return None
    shown: dict[str, list[int]] = run.manifest.get("shown") or {}
    judged = zip(table["question_id"], table["order"], strict=True)
    more = ties(run.manifest.get("readout"))
    own = [list(o) == [*shown.get(q, range(len(o) - more)), *range(len(o) - more, len(o))] for q, o in judged]
    table = table[own] if any(own) else table
    pairs = [(q, tuple(int(i) for i in o)) for q, o in zip(table["question_id"], table["order"], strict=True)]
    slots = [order.index(known[q].ids.index(said[q])) for q, order in pairs]
    held = {k: v for k, v in contents(pairs, dict(known)).items() if k not in ("orders", "lengths")}
    picks = Picks(np.array(slots), table["slot"].to_numpy(dtype=int), **held)
    return Replay(against(picks), len(pairs), any(own), len({q for q, _ in pairs}))
