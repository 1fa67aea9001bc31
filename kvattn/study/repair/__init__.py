"""Repair: teach a judge to read reused candidates, and say whether it did (docs/repair.md)."""

from __future__ import annotations

from kvattn.study.repair.evaluation import Verdict, evaluate, judged, verdict
from kvattn.study.repair.recipe import Recipe
from kvattn.study.repair.teacher import question_sha256
from kvattn.study.repair.training import train

__all__ = ["Recipe", "Verdict", "evaluate", "judged", "question_sha256", "train", "verdict"]
