"""How far kept candidates are from a shallow fresh pass: signals that a run does not hold and a probe has to make.

The probe is dense through the layers under the check layer, as in CacheBlend (Yao et al., EuroSys 2025); its
token-layers are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvattn.errors import KvattnError
from kvattn.files import replacing
from kvattn.text import Progress

if TYPE_CHECKING:
    from kvattn.engine.blocks import Blocks
    from kvattn.engine.engine import Engine
    from kvattn.engine.layout import PromptLayout
    from kvattn.engine.plan import KVPlan
    from kvattn.judge.judge import Judge
    from kvattn.questions.prompt import JudgePrompt
    from kvattn.study.run_folder import Run

NAME = "gate-signals.parquet"
Deviation = dict[str, Any]  # slot: keys, values [slots]; token_layers


def deviation(layout: PromptLayout, stale: KVPlan, engine: Engine, check: int = 1) -> Deviation:
    """|stale - fresh| / |fresh| of each slot's keys and values at the check layer, and the probe's token-layers.

    check: the layer that is compared; the probe computes the layers under it. Raises KvattnError for a method that
    does not keep every candidate whole.
    """
    from kvattn.engine.plan import dense_plan

    probe = engine.probe(dense_plan(layout, engine.layers), check)
    fresh = [x[check].float().cpu() for x in probe.cache()]
    kept = {k.start: k.block for k in stale.kept}
    out: Deviation = {"keys": [], "values": [], "token_layers": probe.cost.token_layers}
    for s in layout.each("candidate"):
        if s.start not in kept or len(kept[s.start]) != s.length or not s.length:
            raise KvattnError("K/V deviation is that of kept candidates; this method keeps no whole candidate")
        block = kept[s.start].moved(layout.positions[s.start : s.stop], engine.rotary)
        for name, new, old in (("keys", fresh[0], block.keys), ("values", fresh[1], block.values)):
            span = new[:, s.start : s.stop]
            away = (old[check].float().cpu() - span).norm() / span.norm().clamp_min(1e-12)
            out[name].append(float(away))
    return out


def of_judge(judge: Judge, prompt: JudgePrompt, method: Any, blocks: Blocks) -> Deviation:
    """The deviation of one prompt in its own order under a method."""
    layout = judge.compile(prompt)
    return deviation(layout, method.plan(layout, blocks, judge.engine), judge.engine)


def measure(judge: Judge, run: Run, prompts: Sequence[JudgePrompt], method: str, progress: Progress) -> Path:
    """Measures every judgement of a run and writes gate-signals.parquet into its folder.

    prompts: the run's questions. Raises KvattnError where one is missing, or says something else than in the run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kvattn import methods as zoo
    from kvattn.engine.blocks import Blocks

    chosen, by_id, rows = zoo.get(method), {p.id: p for p in prompts}, []
    judged: Any = run.sql(
        'SELECT DISTINCT question_id, "order", texts FROM judgements JOIN questions USING (question_id) '
        'WHERE method = ? ORDER BY question_id, "order"',
        [method],
    )
    made: dict[str, Blocks] = {}
    for i, row in enumerate(judged.to_dict("records")):
        prompt = by_id.get(row["question_id"])
        if prompt is None or [c.text for c in prompt.candidates] != list(row["texts"]):
            raise KvattnError(
                f"question {row['question_id']!r} of the run is not among the prompts given, text for text"
            )
        if prompt.id not in made:
            made = {prompt.id: Blocks(judge.engine, prompt, judge.regime)}
        order = [int(k) for k in row["order"]]
        found = of_judge(judge, prompt.ordered(order), chosen, made[prompt.id])
        rows.append({"question_id": prompt.id, "order": order, "method": method, **found})
        progress("measuring", i + 1, len(judged))
    path = run.folder / NAME
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return path


def read(run: Run, method: str) -> dict[tuple[str, tuple[int, ...]], Deviation]:
    """The signals of a run by question and order. Raises KvattnError where they were not measured."""
    import pyarrow.parquet as pq

    path = run.folder / NAME
    remedy = f"measure them: kvattn gate signals {run.folder} FILE --reuse {method}"
    if not path.is_file():
        raise KvattnError(f"{run.folder} has no {NAME}; {remedy}")
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise KvattnError(f"{path} cannot be read ({str(error).splitlines()[0]}); {remedy}") from None
    found = {(r["question_id"], tuple(r["order"])): r for r in rows if r["method"] == method}
    if not found:
        raise KvattnError(f"{path} says nothing of {method!r}; {remedy}")
    return found
