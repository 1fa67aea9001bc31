"""What a cache claims, read from files: the ids that it is the KV of, and what its blocks were made behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError
from kvattn.files import read_json
from kvattn.questions.prompt import check_unicode
from kvattn.questions.validation import validated


@dataclass
class Claims:
    """A file of --ids: token ids, the positions that keys are claimed to stand at, blocks by name as [start, stop)."""

    token_ids: list[int]
    positions: list[int] | None = None
    blocks: dict[str, tuple[int, int]] | None = None


def read_claims(path: Path) -> Claims:
    """The claims of a JSON file, a list of ids or an object as `Claims`. Raises KvattnError for another."""
    held = _json(path)
    return validated(Claims, held if isinstance(held, dict) else {"token_ids": held}, str(path))


def read_prompts(path: Path, tokenizer: Any) -> dict[str, list[int]]:
    """By a block's name, the ids of the text that it was made behind: a JSON object of texts or lists of ids."""
    said = validated(dict[str, str | list[int]], _json(path), str(path))
    for name, text in said.items():
        if isinstance(text, str):
            check_unicode(text, f"{path}, field {name!r}:")
    return {k: tokenizer(v, add_special_tokens=False).input_ids if isinstance(v, str) else v for k, v in said.items()}


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as e:
        raise KvattnError(f"cannot read {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise KvattnError(f"{path} is no JSON ({e}); docs/audit.md says what belongs in it") from None
