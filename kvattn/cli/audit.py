"""`kvattn audit`: what a cache holds, against what it claims in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kvattn.cli import page
from kvattn.cli.options import Device, Dtype, Model, loaded
from kvattn.errors import KvattnError
from kvattn.files import read_json
from kvattn.questions.prompt import check_unicode
from kvattn.questions.validation import validated
from kvattn.text import one_line


def audit(
    cache: Annotated[Path, typer.Argument(help="A file of kvattn.caches.save, or a folder of vLLM's connector.")],
    ids: Annotated[
        Path | None,
        typer.Option(help="JSON: the ids it claims to be of; positions, blocks (docs/audit.md)."),
    ] = None,
    model: Model = "smollm2-135m",
    claimed: Annotated[Path | None, typer.Option(help="JSON: by block, the text or ids it was made behind.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every number there is.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a page with maps of token x layer (.html).")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """What a KV cache really holds: which tokens, at which positions, behind which text. Exit status 2 on faults."""
    import json

    from kvattn.engine.audit import audit as hold
    from kvattn.engine.caches import load

    where = page(out) if out is not None else None
    said = read_claims(ids) if ids else None
    engine = loaded(model, dtype=dtype, device=device).engine
    behind = read_prompts(claimed, engine.tokenizer) if claimed else None
    given = load(cache, said.token_ids if said and cache.is_dir() else None, engine.geometry.kv_heads)
    told = (said.token_ids, said.positions, said.blocks) if said else (None, None, None)
    found = hold(engine, given, *told, behind)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else "\n".join(map(one_line, str(found).splitlines())))
    if where is not None:
        from kvattn.report.audit import write_audit

        words = [engine.tokenizer.decode([i]) if i >= 0 else "(no token)" for i in found.found]
        write_audit(found, words, where, cache.name)
        if not as_json:
            typer.echo(f"page: {where}")
    if not found.passed:
        bad = sum(bool(b.faults) for b in found.blocks)
        raise KvattnError(f"{bad} of {len(found.blocks)} blocks of {cache} are not what is claimed; make them again")


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
