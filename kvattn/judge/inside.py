"""What single heads and layers do under a plan: attention, what it moves, what it writes into the scores, and cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from kvattn.engine import readings
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.lens import lens
from kvattn.engine.plan import KVPlan
from kvattn.engine.scores import slot_logits
from kvattn.errors import KvattnError


@dataclass(frozen=True)
class Inside:
    """One plan, executed with all that is asked of its heads and layers. Of several decision tokens (yes/no), `mass`
    and `norm` are the mean.

    mass:    [layers, heads, slots], the deciding token's attention to each candidate
    norm:    [layers, heads, slots], length of (attention x V x W_O) from each candidate
    scores:  [layers + 1, slots], each slot's score as the logit lens reads it before the first layer and after each
    written: [layers, heads, slots], what a head writes straight into each slot's score, or None where the model's heads
             do not write one by one (`readings.attribution`)
    """

    execution: Execution
    mass: Float[np.ndarray, "layers heads slots"]
    norm: Float[np.ndarray, "layers heads slots"]
    scores: Float[np.ndarray, "stages slots"]
    written: Float[np.ndarray, "layers heads slots"] | None


def look(engine: Engine, plan: KVPlan) -> Inside:
    """The plan executed. Raises KvattnError for a layout whose judge writes its verdict: no one token decides."""
    layout = plan.layout
    if layout.reader is None:
        raise KvattnError("a judge that writes its verdict decides at no one token; take the readout label or yesno")
    run = engine.execute([plan], Wanted(norms=True, residual=True, moved=True), keep_cache=True)[0]
    got = run.captured
    assert got is not None
    assert got.norm is not None
    try:
        written = by_slot(readings.attribution(engine, got, layout.answer_ids).sum(3), layout).numpy()
    except KvattnError:
        written = None
    at = [layout.names.index(f"candidate:{s + 1}") for s in range(layout.slots)]
    mass, norm = (x.mean(0)[..., at].numpy() for x in (got.mass, got.norm))
    scores = by_slot(readings.logit_lens(engine, got, layout.answer_ids), layout).numpy()
    return Inside(replace(run, captured=None), mass, norm, scores, written)


def by_slot(of_ids: Float[Tensor, "queries *rest ids"], layout: PromptLayout) -> Float[Tensor, "*rest slots"]:
    """Logits of the answer ids, or parts of them, as parts of each slot's score: the labels' own, or yes less no of
    each slot's branch."""
    if layout.segments[-1].role == "branch":
        return (of_ids[..., 0] - of_ids[..., 1]).movedim(0, -1)
    return of_ids[0][..., : layout.slots]


def heads(engine: Engine, base: Inside, other: Inside, slots: tuple[int, int], cut: int = 0) -> pd.DataFrame:
    """A row a head: what it does under `other`, beside what it does under `base`; columns as `Comparison.heads` says.

    slots: (from, to), from 0: what is written, and what a cut takes, is counted as score of `to` less score of `from`
    cut:   so many of the first heads are cut
    """
    change = other.mass - base.mass
    layer, head = (x.ravel() for x in np.indices(change.shape[:2]))
    slot = np.abs(change).argmax(-1).ravel()

    def there(x: np.ndarray) -> np.ndarray:
        return x[layer, head, slot]

    table: Any = pd.DataFrame(
        {
            "where": [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)],
            "layer": layer,
            "head": head,
            "slot": slot + 1,
            **{name: there(x) for name, x in (("mass_base", base.mass), ("mass", other.mass), ("change", change))},
            **{name: there(x) for name, x in (("norm_base", base.norm), ("norm", other.norm))},
            **{name: _toward(x.written, slots) for name, x in (("written_base", base), ("written", other))},
        }
    )
    order = table["change"].abs().sort_values(ascending=False, kind="stable").index
    table = table.loc[order].reset_index(drop=True)
    if cut:
        first: list[tuple[int, int]] = list(zip(table["layer"][:cut], table["head"][:cut], strict=True))
        table["cut"] = pd.Series(cuts(engine, other.execution, first, slots))
    return table


def _toward(written: np.ndarray | None, slots: tuple[int, int]) -> np.ndarray | float:
    return np.nan if written is None else (written[..., slots[1]] - written[..., slots[0]]).ravel()


def cuts(engine: Engine, execution: Execution, some: Sequence[tuple[int, int]], slots: tuple[int, int]) -> list[float]:
    """How far the score of slots[1] less that of slots[0] moves when what one head (layer, head) brings the deciding
    token is set to zero, each of `some` alone. What the head did for earlier tokens stays.

    Raises KvattnError where TransformerLens cannot run the model, and for a plan in which an adapter acts."""
    microscope, layout = lens(engine), execution.plan.layout

    def lead(hooks: Sequence) -> float:
        logits = torch.stack([microscope.run(execution, hooks, which)[0] for which in range(len(layout.decisions))])
        scores = slot_logits(logits, layout.answer_ids, layout.slots)
        return float(scores[slots[1]] - scores[slots[0]])

    whole = lead(())
    return [lead(microscope.knock_out([(int(layer), int(head))])) - whole for layer, head in some]


def drift(base: Inside, other: Inside) -> pd.DataFrame:
    """How far the candidates' keys and values are from `base`'s, mean over a candidate's tokens: layer (from 0), slot
    (from 1), keys, values, each as a share of base's norm."""
    keys, values = readings.kv_drift(other.execution, base.execution)
    rows = []
    for s in other.execution.plan.layout.each("candidate"):
        if s.length and s.slot is not None:
            both = (x[:, s.start : s.stop].mean(1).tolist() for x in (keys, values))
            rows += [(layer, s.slot + 1, k, v) for layer, (k, v) in enumerate(zip(*both, strict=True))]
    return pd.DataFrame(rows, columns=["layer", "slot", "keys", "values"])
