"""Figures as pure functions: data in, Plotly figure out. Nothing here loads a model or reads a file."""

from __future__ import annotations

from kvattn.plots.blocks import block_matrix as block_matrix
from kvattn.plots.clicks import clickable as clickable
from kvattn.plots.export import save as save
from kvattn.plots.forest import forest as forest
from kvattn.plots.influence import influence_graph as influence_graph
from kvattn.plots.mass import dilution_by_slot as dilution_by_slot
from kvattn.plots.mass import dilution_panels as dilution_panels
from kvattn.plots.mass import slot_mass_grid as slot_mass_grid
from kvattn.plots.mass import slots_by_layer as slots_by_layer
from kvattn.plots.picks import flow as flow
from kvattn.plots.picks import jcr_bars as jcr_bars
from kvattn.plots.picks import ladder as ladder
from kvattn.plots.picks import shuffle as shuffle
from kvattn.plots.picks import slot_histogram as slot_histogram
from kvattn.plots.row import comparison as comparison
from kvattn.plots.row import decision_row as decision_row
from kvattn.plots.row import segment_row as segment_row
from kvattn.plots.runs import by_depth as by_depth
from kvattn.plots.runs import consistency_of_runs as consistency_of_runs
from kvattn.plots.runs import frontier as frontier
from kvattn.plots.runs import mass_of_slots as mass_of_slots
from kvattn.plots.theme import inert as inert
from kvattn.plots.theme import legend_below as legend_below
from kvattn.plots.theme import method_style as method_style
