"""Questions with candidate answers: the embedded synthetic set, and files of candidates."""

from __future__ import annotations

from kvattn.data.candidates import (
    data_sha256,
    is_embedded,
    iter_candidates,
    load,
    mixed_only,
    read_candidates,
    write_candidates,
)
from kvattn.data.synthetic import LADDER, SyntheticPrompt, latin_square, synthetic

__all__ = [
    "LADDER",
    "SyntheticPrompt",
    "data_sha256",
    "is_embedded",
    "iter_candidates",
    "latin_square",
    "load",
    "mixed_only",
    "read_candidates",
    "synthetic",
    "write_candidates",
]
