"""How time and memory grow with tokens, candidates and layers: exponents fitted on log-log lines, beside theory.

    python -m benchmarks.growth [--full | --tiny]

On the attention-bound random Llama. Theory for time is the count of multiplications at the measured sizes, fitted the
same way: a sum of a linear and a quadratic term has no exponent of its own, but the range that was measured has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks import kit


def multiplications(engine, tokens: int, fresh: int | None = None) -> float:
    """Multiply-adds of the decoder: matrices once a fresh token, attention once a fresh token and key before it."""
    c, g = engine.model.config, engine.geometry
    fresh = tokens if fresh is None else fresh
    width, kv = g.heads * g.head_dim, g.kv_heads * g.head_dim
    matrices = c.hidden_size * (2 * width + 2 * kv + 3 * c.intermediate_size)
    keys = fresh * (tokens - fresh) + fresh * (fresh + 1) / 2
    return g.layers * (fresh * matrices + 2 * width * keys)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of the log-log line and its standard error."""
    import numpy as np
    from scipy.stats import linregress

    fit = linregress(np.log(sizes), np.log(values))
    return float(fit.slope), float(fit.stderr)


def dense(engine, tokens: int, candidates: int = 4) -> Callable[[], object]:
    """A captured dense judgement."""
    from kvattn.engine.capture import Wanted
    from kvattn.engine.plan import dense_plan

    plan = dense_plan(kit.layout(engine.model.config.vocab_size, tokens, candidates), engine.layers)
    return lambda: engine.execute([plan], Wanted())


def reuse(engine, tokens: int, candidates: int = 4, each: int | None = None) -> tuple[Callable[[], object], int]:
    """A captured judgement that keeps all candidates of a random prompt; and how many tokens it computes."""
    from kvattn.engine.capture import Wanted
    from kvattn.engine.plan import keep

    if each is not None:
        tokens = each * candidates + 40 + 4 * candidates
    share = 0.8 if each is None else each * candidates / tokens
    x = kit.layout(engine.model.config.vocab_size, tokens, candidates, share)
    made = engine.encode(x)
    plan = keep(x, engine.layers, [(s, made.block(s)) for s in x.each("candidate")])
    return (lambda: engine.execute([plan], Wanted())), int((plan.depth > 0).sum())


def row(name: str, sizes: Sequence[int], values: Sequence[float], theory: Sequence[float], unit: str) -> list[str]:
    """Sizes, first and last value, fitted exponent and theory's."""
    got, error = exponent(sizes, values)
    expected, _ = exponent(sizes, theory)
    ends = f"{values[0]:.3g} to {values[-1]:.3g} {unit}"
    return [name, f"{sizes[0]} to {sizes[-1]}", ends, f"{got:.2f} ± {error:.2f}", f"{expected:.2f}"]


def seconds(runs: dict[int, Callable[[], object]], repeats: int) -> list[float]:
    """Medians by size, sizes alternating."""
    times = kit.alternate({str(n): run for n, run in runs.items()}, kit.Turns(repeats))
    return [median(t) for t in times.values()]


def above(kind: str, **cell) -> float:
    """Peak above the weights in a fresh process."""
    return kit.memory("benchmarks.growth", {"kind": kind, **cell})


def main() -> None:
    """One table."""
    args = kit.arguments(__doc__)
    if args.memory:
        cell = dict(args.memory)
        engine = kit.engine("attention", cell["layers"])
        make = dense if cell["kind"] == "dense" else (lambda e, n: reuse(e, n)[0])
        full = make(engine, cell["tokens"])
        kit.peak_above(make(engine, 64), full)
        return
    report = kit.Report("growth", __doc__, args.out)
    engine = kit.engine("attention")
    top, repeats = (512, 3) if args.tiny else ((16384 if args.full else 4096), 5)
    sizes = [n for n in (128, 256, 512, 1024, 2048, 4096, 8192, 16384) if top // 16 <= n <= top]
    large = [n for n in (1024, 2048, 4096, 8192, 16384) if n <= max(top, 2048)]  # below, a peak is noise
    rows = []
    times = seconds({n: dense(engine, n) for n in sizes}, repeats)
    rows.append(row("dense, time by tokens", sizes, times, [multiplications(engine, n) for n in sizes], "s"))
    held = [above("dense", tokens=n, layers=8) for n in large]
    rows.append(row("dense, memory by tokens", large, held, large, "MiB"))
    made = {n: reuse(engine, n) for n in sizes}
    times = seconds({n: run for n, (run, _) in made.items()}, repeats)
    work = [multiplications(engine, n, fresh) for n, (_, fresh) in made.items()]
    rows.append(row("reuse of 80 %, time by tokens", sizes, times, work, "s"))
    held = [above("reuse", tokens=n, layers=8) for n in large]
    rows.append(row("reuse of 80 %, memory by tokens", large, held, large, "MiB"))
    each, many = top // 16, (2, 4, 8, 16)
    prompts = {c: each * c + 40 + 4 * c for c in many}
    times = seconds({c: dense(engine, n, c) for c, n in prompts.items()}, repeats)
    work = [multiplications(engine, n) for n in prompts.values()]
    rows.append(row(f"dense, time by candidates of {each} tokens", many, times, work, "s"))
    kept = {c: reuse(engine, 0, c, each) for c in many}
    times = seconds({c: run for c, (run, _) in kept.items()}, repeats)
    work = [multiplications(engine, n, kept[c][1]) for c, n in prompts.items()]
    rows.append(row(f"reuse, time by candidates of {each} tokens", many, times, work, "s"))
    depths = (2, 4, 8, 16)
    engines = {d: kit.engine("attention", d) for d in depths}
    times = seconds({d: dense(e, top // 4) for d, e in engines.items()}, repeats)
    rows.append(row("dense, time by layers", depths, times, depths, "s"))
    held = [above("reuse", tokens=2048, layers=d) for d in depths]
    rows.append(row("reuse of 80 %, memory by layers", depths, held, depths, "MiB"))
    columns = ["what", "sizes", "measured", "exponent ± standard error", "theory"]
    report.table(f"medians of {repeats}", columns, rows)


if __name__ == "__main__":
    main()
