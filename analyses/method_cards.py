"""Writes docs/methods/: a card for every method. Idea, parameters and source come from the code; cost, influence graph
and what it does to the decision row are measured on synthetic problems.

    python analyses/method_cards.py [--model smollm2-135m] [--problems 6] [--out docs/methods]

Asks: what does each method keep, what can still reach the decision, what does it cost, and where does the row move?
Overturned by: a card whose numbers another model or data set contradicts; they describe, they do not prove.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import numpy as np

from kvattn import load, methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.influence import explain
from kvattn.methods.base import Method
from kvattn.questions import synthetic
from kvattn.questions.orders import orders

FORMULAS = {
    "dense": "K, V of every token from one causal forward.",
    "true-mask": "attention(q, k) is open iff k <= q and (slot(q) = slot(k), or one of them belongs to no slot).",
    "isolated": "K' = R(p_judge - p_alone) K_alone, V' = V_alone, both made behind prefix and question alone.",
    "naive": "K' = R(p_judge - p_agent) K_agent, V' = V_agent; the template's from a pass over it alone.",
    "naive-linked": "K' = R(p_judge - p_agent) K_agent, V' = V_agent.",
    "kvcomm": "K' = K + sum_a w_a[t] dK_a[t], w[t] = softmax_a(-mean|K[t] - K_a[t]| / temperature), values alike and "
    "unrotated; text after: w[l, h, c] = softmax_a(-|X - X_a|_2); layer 0 untouched; a text becomes an anchor when the "
    "entropy of softmax_a(-|V - V_a|) exceeds gamma log2(anchors), or at most one anchor is long enough.",
    "pal-kv": "KVCOMM, the sum over a running over the anchors of all agents.",
    "slot-aligned": "KVCOMM, anchors pooled by display slot.",
    "first-k": "score(t) = -(index of t in its candidate).",
    "last-k": "score(t) = index of t in its candidate.",
    "tail": "recompute the last k tokens of every candidate; blind: as under the true mask.",
    "links": "k computed tokens behind every candidate, the text after them moved on; blind: as under the true mask.",
    "kv-deviation": "score(t) = sum over heads and channels of (V_fresh[check, t] - V_stale[check, t])^2.",
    "query-attention": "score(t) = attention to t on the stale cache, mean over the last prompt tokens, layers, heads.",
    "a3": "score(t) = sum over the suffix's queries q and heads of softmax(q . K[0]) at t, over candidates' tokens.",
    "sam-kv": "q_i = q + mean over j != i of |cos(q, q_j)| q_j, head by head; score(block b of i) = sum over heads of "
    "q_i . mean_b(K), scaled to 0 to 1 by layer, mean over layers; q: mean query of the suffix, q_j: of j's last "
    "tokens.",
    "cacheclip": "score(window w) = mean over t in w of the helper's attention to t in its last layer, mean over its "
    "last prompt tokens and heads.",
    "cross-candidate": "score(t) = attention t gives to, or gets from, other candidates' tokens, shallow dense pass.",
    "sinks": "score(first token of a block) = infinity, else -|V_stale[t]| / median over the block.",
    "random": "score(t) uniform.",
    "oracle": "score(t) = sum over layers, heads, channels of (V_dense[t] - V_stale[t])^2.",
    "low-rank-patch": "K' = R K_agent + R rank_m(K_dense - R K_agent under the candidates' own order), values alike.",
    "hybrid": "recompute the k candidates with the largest score; keep the others.",
    "progressive": "keep slots 1..k, recompute the others.",
    "agents": "its base, with K_agent and V_agent of other weights of the judge's shape.",
    "mapped": "its base, with K' = R(p) (W_K [R(-p) K_agent of the chosen layers] + b_K), values alike and unrotated; "
    "W = (X'X + lambda I)^-1 X'Y on centred held-out tokens, the chosen layers those that explain most one by one.",
    "pointwise": "dense on N prompts of one candidate each.",
    "slot-offset": "score'(s) = score(s) - (mean over held-out questions of score(s), less its mean over s).",
    "foreign-kv": "K', V' of another question's text of equal length.",
    "null-edit": "dense on the edited prompt.",
    "mismatched-order": "naive-linked under order pi', its label read under order pi.",
}


def measure(judge, method: Method, prompts) -> dict:
    """Cost, agreement with dense and mean change of slot mass over prompts, two orders each."""
    share, same, change, pairs = [], 0, [], 0
    for prompt, donor in zip(prompts, prompts[1:] + prompts[:1], strict=True):
        made = judge.judge(prompt, ["dense", *([method] if method.name != "dense" else [])],
                           orders("shuffle:2", prompt.n, 0, prompt.id), donor=donor)  # fmt: skip
        dense = {d.order: d for d in made if d.method == "dense"}
        for d in made:
            if d.method != method.label:
                continue
            base = dense[d.order]
            share.append(d.cost.share)
            pairs += 1
            same += prompt.same_content(d.choice, base.choice)
            if d.mass is None or base.mass is None:  # no row over slots
                continue
            names = [f"candidate:{i + 1}" for i in range(prompt.n)]
            mine, theirs = (
                np.array([x.mass.mass.mean((0, 1))[x.mass.names.index(n)] for n in names]) for x in (d, base)
            )
            change.append(np.log(mine / theirs))
    return {
        "share": float(np.mean(share)),
        "same": same,
        "pairs": pairs,
        "change": np.mean(change, axis=0) if change else None,
    }


def card(judge, cls: type[Method], method: Method, prompts) -> str:
    """One card as Markdown."""
    doc = inspect.getdoc(cls) or ""
    idea, _, rest = doc.partition("Parameters\n----------\n")
    prompt = prompts[0]
    blocks = Blocks(judge.engine, prompt, donor=prompts[1])
    layout = judge.compile(method.prompts(prompt)[0])
    for some in [prompts, *([p] for p in synthetic(40, seed=12))]:
        if method.needs_warming:
            judge.warm(method, some)
    plan = method.plan(layout, blocks, judge.engine)
    m = measure(judge, method, prompts)
    lines = [
        f"# {cls.name}",
        "",
        idea.strip(),
        "",
        f"**Source.** {cls.source}.",
        "",
        f"**Formula.** {FORMULAS[cls.name]}",
    ]
    lines += ["", "**Parameters.**", ""]
    if rest:
        lines += ["```text", inspect.cleandoc(rest), "```", ""]
    lines += [f"Defaults: {', '.join(f'`{k}={v}`' for k, v in cls.fields().items()) or 'none'}.", ""]
    row = "**What it does to the row.** There is no row over slots. "
    if m["change"] is not None:
        row = (
            "**What it does to the row.** Mean change of the log of each slot's mass against dense, slots 1 to "
            f"{prompt.n}: {', '.join(f'{x:+.2f}' for x in m['change'])}. "
        )
    lines += [
        f"**Cost.** {m['share']:.0%} of dense's token-layers, probes included"
        f" ({m['pairs']} judgements of synthetic problems, SmolLM2-135M-Instruct).",
        "",
        f"{row}Same pick as dense in {m['same']} of {m['pairs']} (this judge reads little: no result).",
        "",
        "**Influence graph** (one problem).",
        "",
        "```text",
        str(explain(plan, judge.engine.geometry.windows)),
        "```",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write one card a method and an index."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--problems", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=None, help="write these methods' cards (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs/methods"))
    args = parser.parse_args()
    judge = load(args.model)
    prompts = list(synthetic(args.problems, seed=11))
    args.out.mkdir(parents=True, exist_ok=True)
    index = [
        "# Methods",
        "",
        "Made by `python analyses/method_cards.py`.",
        "",
        "| method | idea | source |",
        "|---|---|---|",
    ]
    for cls in (*methods.BUILTIN, *methods.HELPED):
        method = cls()
        if args.only is None or cls.name in args.only:
            (args.out / f"{cls.name}.md").write_text(card(judge, cls, method, prompts))
            print(cls.name, flush=True)
        first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        index.append(f"| [{cls.name}]({cls.name}.md) | {first} | {cls.source} |")
    (args.out / "README.md").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    main()
