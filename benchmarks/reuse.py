"""What executing a reuse plan costs: each method against a plain transformers forward of as many tokens, a contiguous
suffix, on a ready cache of the same length (the honest limit), and time to decision against dense by the candidates'
share.

    python -m benchmarks.reuse [--full | --tiny] [--only METHOD ...]

`execute` holds cache assembly, moving keys, masks and the forward. `plan` stands apart: there tokens are scored (with
probes) and KVCOMM's correction is made. "1 / suffix" is the speed as a share of the plain suffix forward's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import kit

METHODS = (
    *("naive-linked", "naive", "true-mask", "isolated", "first-k", "last-k", "kv-deviation"),
    *("query-attention", "sinks", "random", "kvcomm:pool=frozen,gamma=2", "hybrid:k=1", "foreign-kv"),
)
SHARES = (0.25, 0.5, 0.75, 0.9)


@dataclass
class Asked:
    """One question at one size."""

    engine: Any
    blocks: Any
    layout: Any

    @staticmethod
    def make(engine, tokens: int, share: float, seed: int = 0) -> Asked:
        """A judge's prompt of about that many tokens, four candidates taking up that share; blocks made on demand."""
        from kvattn.engine.blocks import Blocks
        from kvattn.judge import readout
        from kvattn.judge.judge import Judge
        from kvattn.questions import synthetic

        judge = Judge(engine, readout.get("label"))
        prompt = sized(judge, tokens, share, seed)
        return Asked(
            engine, Blocks(engine, prompt, donor=synthetic(1, seed=97, candidates=4)[0]), judge.compile(prompt)
        )

    def plan(self, method) -> Any:
        """The method's plan for it."""
        return method.plan(self.layout, self.blocks, self.engine)


def sized(judge, tokens: int, share: float, seed: int = 0):
    """A prompt of about `tokens` tokens: numbers for a question and for four candidates."""
    import random

    from kvattn.questions.prompt import Candidate, JudgePrompt
    from kvattn.questions.templates import get_template

    rng = random.Random(seed)

    def text(n: int) -> str:
        return " ".join(str(rng.randint(0, 9)) for _ in range(n))

    def made(question: int, each: int):
        return JudgePrompt(
            text(question), tuple(Candidate(f"c{i}", text(each)) for i in range(4)), get_template("math"), id=f"q{seed}"
        )

    frame = len(judge.compile(made(1, 1))) - 5 * len(judge.engine.compiler.text(text(1)))
    per = (len(judge.engine.compiler.text(text(101))) - len(judge.engine.compiler.text(text(1)))) / 100
    each = round(tokens * share / 4 / per)
    return made(max(1, round((tokens - frame - 4 * each * per) / per)), each)


def suffix_forward(engine, fresh: int, tokens: int) -> Callable[[], float]:
    """The limit: that many tokens through the plain model on a DynamicCache that already holds the rest. Returns the
    seconds of the forward alone."""
    import torch
    from transformers import DynamicCache

    model, g = engine.model, engine.geometry
    ids = torch.randint(10, model.config.vocab_size, (1, fresh))
    shape = (1, g.kv_heads, tokens - fresh, g.head_dim)
    held = [(torch.randn(shape), torch.randn(shape)) for _ in range(g.layers)]

    def run() -> float:
        from kvattn.engine.capture import NAME

        model.set_attn_implementation("sdpa")
        cache = DynamicCache()
        if tokens > fresh:
            for i, (k, v) in enumerate(held):
                cache.update(k, v, i)
        began = kit.clock()
        with torch.inference_mode():
            model(ids, past_key_values=cache, logits_to_keep=1, use_cache=True)
        seconds = kit.clock() - began
        model.set_attn_implementation(NAME)
        return seconds

    return run


def against_suffix(
    engine, tokens: int, share: float, turns: kit.Turns, report: kit.Report, names: Sequence[str]
) -> None:
    """Every method beside its own limit."""
    from kvattn import methods as zoo

    asked = Asked.make(engine, tokens, share)
    rows, data = [], {}
    for name in names:
        method = zoo.get(name)
        if method.needs_warming:
            warm(method, engine, tokens, share)
        plan = asked.plan(method)
        fresh = int((plan.depth > 0).sum())
        times = kit.alternate(
            {
                "execute": lambda plan=plan: engine.execute([plan]),
                "plan": lambda method=method: asked.plan(method),
                "suffix": suffix_forward(engine, fresh, len(asked.layout)),
            },
            turns,
        )
        times = {s: [float(t) for t in ts] for s, ts in times.items()}
        speed = kit.ratio(times["suffix"], times["execute"])
        apart = kit.ratio(times["plan"], times["execute"])
        data[method.label] = {"fresh": fresh, "speed": speed, "plan_over_execute": apart, "times": times}
        middle = {s: sorted(ts)[len(ts) // 2] for s, ts in times.items()}
        rows.append(
            [method.label, f"{fresh} of {len(asked.layout)}", f"{middle['suffix']:.3f}", f"{middle['execute']:.3f}",
             kit.said(speed), f"{middle['plan']:.3f}"]
        )  # fmt: skip
    columns = ["method", "tokens computed", "suffix forward s", "execute s", "1 / suffix (95 %)", "plan s"]
    title = f"{len(asked.layout)} tokens, candidates {share:.0%}, up to {turns.pairs} pairs"
    report.table(title, columns, rows, data)


def warm(method, engine, tokens: int, share: float) -> None:
    """Fill a pool from another question, padded a little so that its anchors are long enough."""
    from kvattn.judge import readout
    from kvattn.judge.judge import Judge

    judge = Judge(engine, readout.get("label"))
    judge.warm(method, [sized(judge, int(tokens * 1.05), share, seed) for seed in (1, 2)])


def against_dense(engine, tokens: int, turns: kit.Turns, report: kit.Report) -> None:
    """Time to decision of naive reuse, plan and all, as a share of dense's."""
    from kvattn import methods as zoo
    from kvattn.engine.plan import dense_plan

    rows, data = [], {}
    for share in SHARES:
        asked = Asked.make(engine, tokens, share)
        row: list[Any] = [f"{share:.0%} of {len(asked.layout)}"]
        for name in ("naive-linked", "last-k"):
            method = zoo.get(name)
            plan = asked.plan(method)
            times = kit.alternate(
                {
                    "reuse": lambda asked=asked, method=method: engine.execute([asked.plan(method)]),
                    "dense": lambda asked=asked: engine.execute([dense_plan(asked.layout, engine.layers)]),
                },
                turns,
            )
            r = kit.ratio(times["reuse"], times["dense"])
            left = plan.token_layers / (len(asked.layout) * engine.layers)
            data[f"{name} {share}"] = {"ratio": r, "token_layers": left, "times": times}
            row += [f"{left:.3f}", kit.said(r)]
        rows.append(row)
    columns = ["candidates", "naive-linked: token-layers / dense", "naive-linked: time / dense (95 %)"]
    columns += ["last-k: token-layers / dense", "last-k: time / dense (95 %)"]
    report.table(f"Time to decision, up to {turns.pairs} pairs", columns, rows, data)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods alone, beside the suffix forward")
    args = kit.arguments(__doc__, parser)
    report = kit.Report("reuse", __doc__, args.out)
    engine = kit.engine("smollm2")
    if args.only:
        against_suffix(engine, 320 if args.tiny else 1024, 0.5 if args.tiny else 0.75, args.turns, report, args.only)
        return
    if args.tiny:
        against_suffix(engine, 320, 0.5, args.turns, report, METHODS)
        against_dense(engine, 320, args.turns, report)
        return
    against_suffix(engine, 1024, 0.75, args.turns, report, METHODS)
    against_dense(engine, 1024, args.turns, report)
    if args.full:
        against_suffix(engine, 4096, 0.9, args.turns, report, METHODS)
        against_dense(engine, 4096, args.turns, report)


if __name__ == "__main__":
    main()
