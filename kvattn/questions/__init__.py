"""Questions with candidate answers (the embedded sets, files of candidates), and questions without (data sets)."""

from __future__ import annotations

from kvattn.questions.answers import Parsed, check, parse, same
from kvattn.questions.candidates import (
    data_sha256,
    is_embedded,
    iter_candidates,
    load,
    mixed_only,
    read_candidates,
    record,
    write_candidates,
)
from kvattn.questions.problems import Problem, load_problems
from kvattn.questions.relational import RELATIONAL, RelationalPrompt, relational
from kvattn.questions.synthetic import LADDER, SyntheticPrompt, synthetic

__all__ = [
    "LADDER",
    "RELATIONAL",
    "Parsed",
    "Problem",
    "RelationalPrompt",
    "SyntheticPrompt",
    "check",
    "data_sha256",
    "is_embedded",
    "iter_candidates",
    "load",
    "load_problems",
    "mixed_only",
    "parse",
    "read_candidates",
    "record",
    "relational",
    "same",
    "synthetic",
    "write_candidates",
]
