"""All 24 orders of one question under dense, naive-linked and three selective methods: kvattn, which computes shared
beginnings once, against a plain transformers loop that encodes every candidate once and judges order after order.

    python -m benchmarks.orders [--full | --tiny]

The loop does what one writes without kvattn: one forward for dense; for reuse, the prompt from left to right, fresh
tokens through the model, kept ones moved and appended to a DynamicCache. Its logits must equal kvattn's, or the
benchmark fails. The trie is the fewest tokens that dense can compute: every distinct beginning once.
"""

from __future__ import annotations

from typing import Any

from benchmarks import kit
from benchmarks.reuse import sized

METHODS = ("dense", "naive-linked", "first-k", "last-k", "last-k:budget=0.3,per=ramp")


def runs_of(plan) -> list[tuple[bool, int, int]]:
    """(kept, start, stop) of every run of kept or fresh tokens of a plan."""
    fresh = (plan.depth > 0).tolist()
    out: list[tuple[bool, int, int]] = []
    for i, f in enumerate(fresh):
        if out and out[-1][0] == (not f):
            out[-1] = (out[-1][0], out[-1][1], i + 1)
        else:
            out.append((not f, i, i + 1))
    return out


def loop(engine, plan):
    """One judgement by plain transformers: logits of the last token."""
    import torch
    from transformers import DynamicCache

    ids, cache, out = plan.layout.token_ids[None], DynamicCache(), None
    for kept, start, stop in runs_of(plan):
        if not kept:
            out = engine.model(ids[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1)
            continue
        for k in plan.kept:
            a, b = max(start, k.start), min(stop, k.start + len(k.block))
            if a < b:
                moved = k.block.part(a - k.start, b - k.start).moved(torch.arange(a, b), engine.rotary)
                for layer in range(engine.layers):
                    cache.update(moved.keys[layer][None], moved.values[layer][None], layer)
    assert out is not None
    return out.logits[0, -1]


def trie(plans) -> tuple[int, int]:
    """Tokens and candidate blocks of all distinct beginnings of these prompts."""
    found = {}
    for p in plans:
        ids = p.layout.token_ids.tolist()
        found |= {(*ids[: s.stop], s.role): s for s in p.layout.segments}
    return sum(s.length for s in found.values()), sum(s.role == "candidate" for s in found.values())


def measure(engine, tokens: int, turns: kit.Turns, report: kit.Report) -> None:
    """A row a method."""
    import torch

    from kvattn import methods as zoo
    from kvattn.engine import sharing
    from kvattn.engine.blocks import Blocks
    from kvattn.engine.capture import NAME
    from kvattn.judge import readout
    from kvattn.judge.judge import Judge
    from kvattn.questions.orders import orders

    judge = Judge(engine, readout.get("label"))
    prompt = sized(judge, tokens, 0.6)
    layouts = [judge.compile(prompt.ordered(o)) for o in orders("all", 4)]
    blocks = Blocks(engine, prompt)
    rows, data = [], {}
    sums: dict[str, list[float]] = {}
    for name in METHODS:
        method = zoo.get(name)
        plans = [method.plan(x, blocks, engine) for x in layouts]

        def kvattn(method=method) -> list[Any]:
            return sharing.execute(engine, [method.plan(x, blocks, engine) for x in layouts])

        def plain(plans=plans) -> list[Any]:
            engine.model.set_attn_implementation("sdpa")
            with torch.inference_mode():
                made = [loop(engine, p) for p in plans]
            engine.model.set_attn_implementation(NAME)
            return made

        before = engine.meter.tokens
        shared = sharing.execute(engine, plans)
        computed = engine.meter.tokens - before
        worst = max(float((a.logits[0] - b).abs().max()) for a, b in zip(shared, plain(), strict=True))
        if worst > 1e-2:
            raise SystemExit(f"{name}: the loop's logits differ by {worst}")
        sides = {"kvattn": kvattn, "loop": plain}
        if name == "dense":  # what sharing alone buys
            sides["unshared"] = lambda plans=plans: engine.execute(plans)
        times = kit.alternate(sides, turns)
        for side, ts in times.items():
            sums[side] = [a + b for a, b in zip(sums.get(side, [0.0] * len(ts)), ts, strict=False)]
        alone = sum(int((p.depth > 0).sum()) for p in plans)
        over = kit.ratio(times["loop"], times["kvattn"])
        unshared = kit.ratio(times["unshared"], times["kvattn"]) if name == "dense" else None
        least, blocks_needed = trie(plans) if name == "dense" else (0, 0)
        data[method.label] = {
            "computed": computed, "alone": alone, "trie": least, "trie_blocks": blocks_needed, "logits_differ": worst,
            "loop_over_kvattn": over, "unshared_over_kvattn": unshared, "times": times,
        }  # fmt: skip
        limit = f"{computed / least:.3f} ({blocks_needed} of 96 blocks)" if least else ""
        rows.append(
            [method.label, f"{computed} of {alone}", limit, kit.said(over), kit.said(unshared) if unshared else ""]
        )
    over = kit.ratio(sums["loop"], sums["kvattn"])
    data["all"] = {"loop_over_kvattn": over}
    rows.append(["all five", "", "", kit.said(over), ""])
    columns = ["method", "tokens computed", "tokens / trie", "loop / kvattn (95 %)", "without sharing / kvattn (95 %)"]
    report.table(
        f"smollm2, 24 orders of {len(layouts[0])} tokens, {len(sums['loop'])} pairs or more", columns, rows, data
    )


def main() -> None:
    """One table; with --full one more of longer prompts."""
    args = kit.arguments(__doc__)
    report, engine = kit.Report("orders", __doc__, args.out), kit.engine("smollm2")
    measure(engine, 160, args.turns, report)
    if args.full:
        measure(engine, 1024, args.turns, report)


if __name__ == "__main__":
    main()
