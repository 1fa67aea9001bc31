"""GSM8K, MMLU and HumanEval from the Hugging Face Hub, each at one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvattn.errors import KvattnError, unknown


@dataclass(frozen=True)
class HubSource:
    """Where a data set lies; the first split is the default. `revision` is a full commit hash of the Hub repository."""

    path: str
    config: str
    revision: str
    splits: tuple[str, ...]


# Commits that public evaluation suites pin (UKGovernmentBEIS/inspect_evals pins the same three); each was found in
# several independent public repositories.
SOURCES: dict[str, HubSource] = {
    "gsm8k": HubSource("openai/gsm8k", "main", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", ("test", "train")),
    "mmlu": HubSource("cais/mmlu", "all", "c30699e8356da336a370243923dbaf21066bb9fe", ("validation", "test", "dev")),
    "humaneval": HubSource(
        "openai/openai_humaneval", "openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544", ("test",)
    ),
}
MMLU_SEED, MMLU_QUESTIONS = 888, 153


def mmlu_draw(rows: int) -> list[int]:
    """Indices of the paper's MMLU questions among that many validation rows (arXiv 2601.08343): the first 153 of
    `numpy.random.default_rng(888).permutation`. All of them, permuted, where there are fewer."""
    import numpy as np

    return np.random.default_rng(MMLU_SEED).permutation(rows)[:MMLU_QUESTIONS].tolist()


def rows(name: str, split: str | None = None, limit: int | None = None) -> list[tuple[str, dict[str, Any], str]]:
    """(id, row, where it was found) of a Hub data set, in its own order, or the first `limit`.

    "mmlu" without a split is the paper's draw from the validation rows, "mmlu:validation" all of them. Raises
    KvattnError for an unknown split, where the package `datasets` is missing, and where neither the Hub nor its local
    cache has the data.
    """
    source = SOURCES[name]
    if split is not None and split not in source.splits:
        raise unknown(f"split of {name}", split, source.splits)
    taken = split or source.splits[0]
    table = _load(source, name, taken)
    chosen: Sequence[int] = mmlu_draw(len(table)) if name == "mmlu" and split is None else range(len(table))
    return [(f"{name}-{taken}-{i:04d}", table[i], f"{source.path}, {taken} row {i}") for i in chosen[:limit]]


def _load(source: HubSource, name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise KvattnError(f"the data set {name!r} needs one more package: pip install 'kvattn[data]'") from None
    try:
        return datasets.load_dataset(source.path, source.config, split=split, revision=source.revision)
    except Exception as e:  # network, cache, disk: the library raises whatever its parts raise
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise KvattnError(
            f"cannot load {source.path} at {source.revision[:12]}: {why}; connect to the Hub once, or give the path of "
            "a JSONL or Parquet file of the same rows"
        ) from None
