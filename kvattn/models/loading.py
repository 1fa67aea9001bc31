"""Reading a model through transformers: what its checkpoint lacks is named, never left random."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(folder: Path | str, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """The causal language model in `folder`, and the names of the weights that its files lack or hold in another shape.

    transformers fills such weights with random numbers, so a caller must refuse a model whose list is not empty.
    `options` are those of `from_pretrained`; no code of the model's repository is run.
    """
    from transformers import AutoModelForCausalLM

    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, output_loading_info=True, **options
        )
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    return model, lacking


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and warnings; what they warn of (weights that are lacking) is returned."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
