"""The tables of a run folder: their Arrow schemas, and how one unit's decisions become them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvattn.decision import MASS_FLOOR, Decision, SlotMass, ties
from kvattn.errors import KvattnError
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.template_files import of_manifest
from kvattn.questions.templates import get_template
from kvattn.study.run_folder.summary import SUMMARIES, summaries
from kvattn.text import missing

SCHEMA_VERSION = 2
ROWS = 100_000  # of a Parquet file that are read as one, by one core

# Written in this order: the judgements part comes last and is what commits the unit. Units of an older kvattn lack the
# summaries (`kvattn.study.run_folder.summary`).
TABLES = ("questions", "mass", *SUMMARIES, "sums", "judgements")

_TEXT, _INT, _LONG, _FLOAT, _FLAG = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
_TEXTS, _INTS, _FLOATS, _SINGLES = (pa.list_(kind) for kind in (_TEXT, _INT, _FLOAT, pa.float32()))


def _schema(*columns: tuple[pa.DataType, str]) -> pa.Schema:
    """Columns in order, those of one type that follow each other by name in one string."""
    return pa.schema([(name, kind) for kind, names in columns for name in names.split()])


SCHEMAS: dict[str, pa.Schema] = {
    "questions": _schema(
        (_TEXT, "question_id question answer template"),
        (_TEXTS, "candidate_ids agents texts"),
        (pa.list_(_FLAG), "corrects"),
        (_INTS, "lengths"),
    ),
    "judgements": _schema(
        *((_TEXT, "question_id"), (_INTS, "order"), (_TEXT, "method readout"), (_INT, "n")),
        *((_TEXT, "choice"), (_INT, "slot"), (_FLOATS, "scores"), (_FLOAT, "coverage margin"), (_FLAG, "correct")),
        *((_FLOATS, "calibrated"), (_TEXT, "choice_calibrated"), (_INT, "slot_calibrated")),
        (_FLAG, "correct_calibrated"),
        *((_LONG, "tokens tokens_computed"), (_INT, "layers"), (_LONG, "token_layers probe_token_layers")),
        *((_FLOAT, "seconds"), (_LONG, "kv_bytes"), (_INT, "batch")),
        (_INT, "candidate_tokens candidate_tokens_kept blocks_kept"),
        *((_TEXTS, "notes"), (_TEXT, "rule output"), (_FLAG, "answer_correct"), (_INT, "new_tokens")),
    ),
    "mass": _schema(
        *((_TEXT, "question_id"), (_INTS, "order"), (_TEXT, "method query"), (_TEXTS, "names")),
        *((_INTS, "lengths shape"), (_SINGLES, "mass sink norm")),
    ),
    "sums": _schema(
        *((_TEXT, "question_id method query"), (_INT, "layer head"), (_TEXT, "name"), (_INT, "count")),
        (pa.float32(), "tokens_sum mass_sum free_sum"),
        *((_INT, "pairs"), (pa.float32(), "change_sum free_change_sum")),
    ),
}


def question_row(prompt: JudgePrompt, lengths: Sequence[int] | None = None, readout: str = "label") -> dict[str, Any]:
    """The row of the questions table for a prompt; `lengths[i]` is candidate i's length in tokens. Of a template that
    is not built in, whose text stands in the manifest, the row names the task: how final answers are read. What may be
    chosen under the readout are the row's candidates (`JudgePrompt.verdicts`): a tie is one of no length."""
    verdicts = prompt.verdicts(readout)
    more = [0] * (len(verdicts) - prompt.n)
    return {
        "question_id": prompt.id,
        "question": prompt.question,
        "answer": prompt.answer,
        "template": prompt.template.name if prompt.template.built_in else prompt.template.kind,
        "candidate_ids": [c.id for c in verdicts],
        "agents": [c.agent for c in verdicts],
        "texts": [c.text for c in verdicts],
        "corrects": [c.correct for c in verdicts],
        "lengths": None if lengths is None else [*(int(x) for x in lengths), *more],
    }


def prompt_of(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> JudgePrompt:
    """A row of the questions table of a run with that manifest as a prompt, in the words that it was judged in. Its
    texts are tokenised anew: a run keeps no ids that agents generated."""
    n = len(row["candidate_ids"])
    agents, corrects = (row[k] if row[k] is not None else [None] * n for k in ("agents", "corrects"))
    made = tuple(
        Candidate(str(c), str(t), a, None if missing(k) else bool(k))
        for c, t, a, k in zip(row["candidate_ids"], row["texts"], agents, corrects, strict=True)
    )[: n - ties(manifest.get("readout"))]
    own = "@" in str(manifest.get("template"))
    template = of_manifest(manifest["template_text"]) if own else get_template(row["template"])
    return JudgePrompt(row["question"], made, template, id=row["question_id"], regime=manifest.get("regime"))


def unit_tables(question: Mapping[str, Any], decisions: Sequence[Decision]) -> dict[str, pa.Table]:
    """The tables of one unit, by name.

    Raises KvattnError for a question row with other columns, a decision about another question, the same (order,
    method) twice, or text that is no Unicode text.
    """
    unknown = set(question) ^ set(SCHEMAS["questions"].names)
    if unknown:
        raise KvattnError(f"a question row has missing or unknown columns: {', '.join(sorted(unknown))}")
    key = question["question_id"]
    seen: set[tuple[tuple[int, ...], str]] = set()
    for d in decisions:
        if d.question_id != key:
            raise KvattnError(f"a decision about question {d.question_id!r} was given with question {key!r}")
        if (d.order, d.method) in seen:
            raise KvattnError(f"question {key!r}: method {d.method!r} decided order {list(d.order)} twice")
        seen.add((d.order, d.method))
    rows = {
        "questions": [dict(question)],
        "judgements": [judgement_row(d) for d in decisions],
        "mass": [_mass_row(d, m) for d in decisions for m in rows_of(d)],
    }
    try:
        tables = {name: pa.Table.from_pylist(data, schema=SCHEMAS[name]) for name, data in rows.items()}
        tables |= {"sums": sums_table(decisions), **summaries(tables)}
    except UnicodeEncodeError as error:
        raise KvattnError(
            f"question {key!r} holds text that is no Unicode text ({error.reason}); replace its lone surrogates"
        ) from None
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise KvattnError(f"question {key!r} does not fit the run's tables: {str(error).splitlines()[0]}") from None
    return tables


def judgement_row(d: Decision) -> dict[str, Any]:
    """The row of the judgements table for a decision."""
    names = SCHEMAS["judgements"].names
    return {n: len(d.order) if n == "n" else getattr(d.cost if hasattr(d.cost, n) else d, n) for n in names}


def _mass_row(d: Decision, m: SlotMass) -> dict[str, Any]:
    values = [
        a if (a := getattr(m, k)) is None else np.asarray(a, np.float32).ravel() for k in ("mass", "sink", "norm")
    ]
    row = (d.question_id, d.order, d.method, m.query, m.names, m.lengths, m.mass.shape, *values)
    return dict(zip(SCHEMAS["mass"].names, row, strict=True))


def slot_mass_of(row: Mapping[str, Any]) -> SlotMass:
    """The SlotMass in a row of the table mass."""

    def array(name: str) -> np.ndarray | None:
        values = row.get(name)
        known = isinstance(values, (list, np.ndarray))  # pandas has NaN for NULL, Arrow has None
        return np.asarray(values, dtype=np.float32).reshape([int(n) for n in row["shape"]]) if known else None

    mass = array("mass")
    assert mass is not None
    lengths = tuple(int(n) for n in row["lengths"])
    return SlotMass(mass, array("sink"), tuple(row["names"]), lengths, str(row["query"]), array("norm"))


def sums_table(decisions: Sequence[Decision], base: str = "dense") -> pa.Table:
    """Sums over one unit's judgements, one row per (method, query, layer, head, segment name).

    count, tokens_sum:            judgements summed over, and the segment's length in tokens
    mass_sum:                     the segment's share of the row
    free_sum:                     the same without what falls on sink tokens; NaN where nobody looked for sinks
    pairs:                        judgements of `base` in the same order whose segment has the same length
    change_sum, free_change_sum:  over those pairs, log mass less `base`'s log mass (natural logarithm, floored at
                                  MASS_FLOOR); without sink tokens
    """
    bases = {(d.order, m.query): m for d in decisions if d.method == base for m in rows_of(d)}
    groups: dict[tuple[str, str, tuple[str, ...]], list[tuple[Decision, SlotMass]]] = {}
    for d in decisions:
        for m in rows_of(d):
            groups.setdefault((d.method, m.query, m.names), []).append((d, m))
    parts = [_group_sums(method, query, names, members, bases) for (method, query, names), members in groups.items()]
    return pa.concat_tables(parts) if parts else SCHEMAS["sums"].empty_table()


def rows_of(d: Decision) -> tuple[SlotMass, ...]:
    """The slot mass of every captured query of a decision."""
    return () if d.mass is None else (d.mass, *d.more)


def _group_sums(
    method: str,
    query: str,
    names: tuple[str, ...],
    members: list[tuple[Decision, SlotMass]],
    bases: Mapping[tuple[tuple[int, ...], str], SlotMass],
) -> pa.Table:
    layers, heads, segments = members[0][1].mass.shape
    shape = (layers, heads, segments)
    sums = {name: np.zeros(shape) for name in SCHEMAS["sums"].names if name.endswith("_sum")}
    pairs = np.zeros(segments, dtype=np.int32)
    for d, m in members:
        whole, free = m.mass.astype(np.float64), free_mass(m)
        sums["tokens_sum"] += np.asarray(m.lengths)
        sums["mass_sum"] += whole
        sums["free_sum"] += free
        other = bases.get((d.order, query))
        if other is None or other.names != names:
            continue
        same = np.asarray(m.lengths) == np.asarray(other.lengths)
        pairs += same
        for name, values, reference in (("change", whole, other.mass), ("free_change", free, free_mass(other))):
            sums[f"{name}_sum"] += np.where(same, _log(values) - _log(reference), 0.0)
    layer, head, segment = np.indices(shape).reshape(3, -1)
    size = layers * heads * segments
    columns: dict[str, Any] = {
        "question_id": [members[0][0].question_id] * size,
        "method": [method] * size,
        "query": [query] * size,
        "layer": layer,
        "head": head,
        "name": [names[i] for i in segment],
        "count": np.full(size, len(members)),
        "pairs": pairs[segment],
        **{name: values.ravel() for name, values in sums.items()},
    }
    schema = SCHEMAS["sums"]
    return pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in schema}, schema=schema)


def free_mass(m: SlotMass) -> np.ndarray:
    """Mass that does not fall on sink tokens, [layers, heads, segments], never negative; NaN where they are unknown."""
    if m.sink is None:
        return np.full(m.mass.shape, np.nan)
    return np.maximum(m.mass.astype(np.float64) - m.sink, 0.0)


def _log(mass: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(mass.astype(np.float64), MASS_FLOOR))


def to_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file, the same bytes for the same rows."""
    buffer = io.BytesIO()
    # Measured floats hardly repeat: split by byte they take less room; everything else repeats.
    kinds = {path: pa.types.is_floating(kind) for path, kind in map(_leaf, table.schema)}
    options: dict[str, Any] = {
        "use_dictionary": [path for path, floating in kinds.items() if not floating],
        "use_byte_stream_split": [path for path, floating in kinds.items() if floating],
    }
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS, **options)
    return buffer.getvalue()


def _leaf(field: pa.Field) -> tuple[str, pa.DataType]:
    """The Parquet path and type of a column's values."""
    if pa.types.is_list(field.type):
        return f"{field.name}.list.element", field.type.value_type
    return field.name, field.type


def file_key(key: str) -> str:
    """A safe, distinct file name for a unit key: a short slug and a hash, whatever the key holds."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", key)[:32].strip("-") or "unit"
    return f"{slug}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def content_hash(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of a part's content; its file name ends with them."""
    return hashlib.sha256(data).hexdigest()[:16]
