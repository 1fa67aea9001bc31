"""The run folder: one writer that can be stopped at any moment, and any number of readers."""

from __future__ import annotations

from kvattn.study.run_folder.parts import committed
from kvattn.study.run_folder.reader import Run, left_out, read_manifest
from kvattn.study.run_folder.schema import file_key, question_row, to_parquet, unit_tables
from kvattn.study.run_folder.writer import RunWriter, differences, provenance, set_aside

__all__ = [
    "Run",
    "RunWriter",
    "committed",
    "differences",
    "file_key",
    "left_out",
    "provenance",
    "question_row",
    "read_manifest",
    "set_aside",
    "to_parquet",
    "unit_tables",
]
