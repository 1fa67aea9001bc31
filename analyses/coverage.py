"""Do the intervals hold? Coverage by simulation, of judges whose rate is known.

    python -m analyses.coverage [--simulations N]

Asks: in how many of a thousand studies does a 95 % interval hold the true JCR, or the true difference of two? Questions
have rates of their own (beta-binomial, with the correlation of a question's orders given). Prints Markdown, no figure.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from kvattn.stats.intervals import difference, effective_rows, rate_bounds
from kvattn.stats.resampling import tails

RATES = (0.35, 0.60, 0.75, 0.90, 0.95, 0.98)
QUESTIONS = (16, 24, 40, 60)
DESIGNS = ((1, 0.0), (4, 0.0), (4, 0.3), (4, 0.7))  # orders of a question, and how far they go together
STEPS = ((0.05, 0.25), (0.02, 0.08), (0.10, 0.10), (0.0, 0.02))  # shares gained and lost


def hits(rate: float, questions: int, orders: int, correlation: float, simulations: int, seed: int = 0) -> np.ndarray:
    """[simulations, questions], hits of each question's orders."""
    rng = np.random.default_rng([seed, questions, orders, int(100 * correlation), int(1000 * rate)])
    own = np.full((simulations, questions), rate)
    if correlation:
        spread = 1 / correlation - 1
        own = rng.beta(rate * spread, (1 - rate) * spread, size=own.shape)
    return rng.binomial(orders, own)


def moments(hit: np.ndarray, orders: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """value, variance, informative of `rate_bounds`, [simulations] each, of hits [simulations, questions]."""
    variance = (hit / orders).var(1, ddof=1) / hit.shape[1]
    return hit.mean(1) / orders, variance, np.minimum((hit > 0).sum(1), (hit < orders).sum(1))


def shipped(hit: np.ndarray, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """The interval that kvattn prints."""
    return rate_bounds(*moments(hit, orders), hit.shape[1], hit.shape[1] * orders)


def wilson(hit: np.ndarray, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's on the effective number of rows."""
    value, variance, informative = moments(hit, orders)
    rows = effective_rows(value * (1 - value), variance, informative, hit.shape[1], hit.shape[1] * orders)
    return _wilson(value * rows, rows)


def wilson_rows(hit: np.ndarray, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's on rows, which takes orders of a question for independent."""
    return _wilson(hit.sum(1), np.full(len(hit), hit.shape[1] * orders))


def _wilson(hit: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ends: Any = proportion_confint(hit, rows, method="wilson")
    return ends


def bootstrap(hit: np.ndarray, orders: int, resamples: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentiles of resampled questions; Wilson's on questions where there is no spread."""
    questions = hit.shape[1]
    weights = np.random.default_rng(0).multinomial(questions, np.full(questions, 1 / questions), size=resamples)
    drawn = np.sort((hit / orders / questions) @ weights.T, axis=1)
    low, high = (drawn[:, min(int(t * resamples), resamples - 1)] for t in tails(questions))
    flat = np.ptp(hit, axis=1) == 0
    ends = _wilson(hit.mean(1) / orders * questions, np.full(len(hit), questions))
    return np.where(flat, ends[0], low), np.where(flat, ends[1], high)


def covered(interval: tuple[np.ndarray, np.ndarray], rate: float) -> tuple[float, float, float, float]:
    """Coverage, how often the truth lies below the interval and above it, and its mean width."""
    low, high = interval
    slack = 1e-12
    below, above = float((rate < low - slack).mean()), float((rate > high + slack).mean())
    return 1 - below - above, below, above, float((high - low).mean())


def step_coverage(gained: float, lost: float, questions: int, orders: int, simulations: int) -> float:
    """How often the interval of a paired difference holds gained - lost; a question's orders all go together in half of
    the questions."""
    rng = np.random.default_rng([1, questions, orders, int(100 * gained), int(100 * lost)])
    codes, hold = np.repeat(np.arange(questions), orders), 0
    for _ in range(simulations):
        draws = rng.choice([1, -1, 0], p=[gained, lost, 1 - gained - lost], size=(questions, orders))
        draws = np.where(rng.random((questions, 1)) < 0.5, draws[:, :1], draws).ravel()
        found = difference(draws > 0, draws < 0, codes)
        hold += found.low - 1e-12 <= gained - lost <= found.high + 1e-12
    return hold / simulations


def tables(simulations: int) -> str:
    """Three Markdown tables: the interval that is printed, others beside it, and paired differences."""
    head = "| questions x orders, correlation | " + " | ".join(f"{r:.2f}" for r in RATES) + " |"
    lines, rule = [head, "|---" * (len(RATES) + 1) + "|"], "|---|---|---|---|---|"
    kinds = {
        "Clopper-Pearson on effective rows (printed)": shipped,
        "Wilson on effective rows": wilson,
        "bootstrap of questions": bootstrap,
        "Wilson on rows": wilson_rows,
    }
    found: dict[str, list] = {name: [] for name in kinds}
    for questions in QUESTIONS:
        for orders, correlation in DESIGNS:
            cells = []
            for rate in RATES:
                hit = hits(rate, questions, orders, correlation, simulations)
                for name, kind in kinds.items():
                    part = hit[: simulations // 4] if kind is bootstrap else hit
                    found[name].append(covered(kind(part, orders), rate))
                hold, below, _, _ = found[next(iter(kinds))][-1]
                cells.append(f"{hold:.3f} ({below:.3f})")
            label = f"{questions} x {orders}" + (f", {correlation:.1f}" if orders > 1 else "")
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| interval | least coverage | most below | most above | mean width |", rule]
    for name, values in found.items():
        hold, below, above, width = np.array(values).T
        lines.append(f"| {name} | {hold.min():.3f} | {below.max():.3f} | {above.max():.3f} | {width.mean():.3f} |")
    label = " | ".join(f"+{g:.2f} -{lost:.2f}" for g, lost in STEPS)
    lines += ["", f"| paired difference, questions x orders | {label} |", "|---" * (len(STEPS) + 1) + "|"]
    for questions, orders in ((16, 1), (24, 1), (60, 1), (24, 4)):
        cells = " | ".join(f"{step_coverage(g, lost, questions, orders, simulations // 4):.3f}" for g, lost in STEPS)
        lines.append(f"| {questions} x {orders} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--simulations", type=int, default=4000, help="studies simulated for each cell (default: 4000)")
    print("Coverage of 95 % intervals by the true JCR; in brackets how often the truth lies below the interval.\n")
    print(tables(parser.parse_args().simulations))


if __name__ == "__main__":
    main()
