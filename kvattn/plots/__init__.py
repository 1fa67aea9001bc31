"""Figures as pure functions: data in, Plotly figure out. Nothing here loads a model or reads a file."""

from __future__ import annotations

from kvattn.plots.blocks import block_matrix
from kvattn.plots.clicks import clickable
from kvattn.plots.export import save
from kvattn.plots.forest import forest
from kvattn.plots.influence import influence_graph
from kvattn.plots.mass import (
    dilution_by_layer,
    dilution_by_slot,
    dilution_panels,
    slot_mass_grid,
)
from kvattn.plots.picks import flow, jcr_bars, ladder, shuffle, slot_histogram
from kvattn.plots.row import comparison, decision_row, segment_row
from kvattn.plots.runs import by_depth, consistency_of_runs, frontier
from kvattn.plots.theme import inert, method_style
from kvattn.questions.labels import name_of as family

__all__ = [
    "block_matrix",
    "by_depth",
    "clickable",
    "comparison",
    "consistency_of_runs",
    "decision_row",
    "dilution_by_layer",
    "dilution_by_slot",
    "dilution_panels",
    "family",
    "flow",
    "forest",
    "frontier",
    "inert",
    "influence_graph",
    "jcr_bars",
    "ladder",
    "method_style",
    "save",
    "segment_row",
    "shuffle",
    "slot_histogram",
    "slot_mass_grid",
]
