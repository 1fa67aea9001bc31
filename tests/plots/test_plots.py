"""Figures: the numbers they carry, one look for all, model text that stays text, and files without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from fake_run import HOSTILE, METHODS, Fake
from scipy.stats import ttest_1samp
from tiny import engine, short_prompt
from wcag import contrast

from kvattn import plots, stats
from kvattn.engine.influence import explain
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.plots import export, gates, picks, theme
from kvattn.study.run_folder.schema import sums_table

FAKE = Fake(questions=4, orders=2, layers=3, heads=2)


@pytest.fixture(scope="module")
def means() -> Any:
    """As `Run.mass_means` gives them, by question, method, layer, head and name."""
    tables: Any = pd.concat([sums_table(decisions).to_pandas() for _, decisions in FAKE.units()])
    for name in ("mass", "free", "tokens"):
        tables[name] = tables[f"{name}_sum"] / tables["count"]
    tables["change"] = tables["change_sum"] / tables["pairs"]
    return tables[["question_id", "method", "layer", "head", "name", "mass", "free", "tokens", "change"]]


def jcr_table() -> Any:
    rows = [
        {"method": m, "jcr": j, "low": j - 0.1, "high": min(1.0, j + 0.1), "chance": 0.3}
        for m, j in zip(METHODS, (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.95), strict=True)
    ]
    return pd.DataFrame(rows)


def test_slot_values_follow_their_definitions(means: Any) -> None:
    _, decisions = FAKE.unit(1)
    naive = [d.mass for d in decisions if d.method == "naive" and d.mass]
    at = [naive[0].names.index(f"candidate:{s}") for s in range(1, 5)]
    mass = np.mean([m.mass for m in naive], axis=0)[2, 1]
    free = np.mean([m.mass - m.sink for m in naive], axis=0)[2, 1]
    tokens = np.mean([m.lengths for m in naive], axis=0)
    headers = [i - 1 for i in at]
    expected = {
        ("raw", "kept"): mass[at],
        ("among", "kept"): mass[at] / mass[at].sum(),
        ("per_token", "kept"): mass[at] / tokens[at],
        ("raw", "out"): free[at] / free.sum(),
        ("among", "out"): free[at] / free[at].sum(),
    }
    where = "question_id == 'fake-001' and method == 'naive' and layer == 2 and head == 1"
    for (view, sinks), values in expected.items():
        got = stats.slot_values(means, view, sinks).query(where).sort_values("slot")  # type: ignore[arg-type]
        assert list(got["slot"]) == [1, 2, 3, 4]
        np.testing.assert_allclose(got["value"].to_numpy(), values, rtol=1e-5)
    whole = stats.slot_values(means, roles=("header", "candidate")).query(where)
    np.testing.assert_allclose(whole["value"].to_numpy(), mass[at] + mass[headers], rtol=1e-5)
    parts = [stats.slot_values(part).assign(half=half) for half, part in means.groupby(means["layer"] > 0)]
    split = stats.slot_values(means.assign(half=means["layer"] > 0)).merge(pd.concat(parts), on=[*parts[0].columns])
    assert len(split) == sum(map(len, parts))
    with pytest.raises(KvattnError, match="unknown view"):
        stats.slot_values(means, "share")  # type: ignore[arg-type]


def test_intervals_take_the_question_for_the_unit() -> None:
    values: Any = pd.DataFrame(
        {"question_id": list("abcd"), "method": "naive", "slot": 1, "value": np.array([0.1, 0.3, 0.2, 0.6])}
    )
    row = stats.over_questions(values).iloc[0]
    reference = ttest_1samp(values["value"], 0).confidence_interval(0.95)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.3, reference.low, reference.high))
    assert np.isnan(stats.over_questions(values[:1]).iloc[0]["low"])


def test_a_method_looks_the_same_everywhere_and_families_differ_in_grey_too() -> None:
    families = ["dense", "true-mask", "isolated", "naive", "foreign-kv", "null-edit", "kvcomm"]
    styles = [plots.method_style(f) for f in families]
    for attribute in ("colour", "symbol", "pattern"):
        assert len({getattr(s, attribute) for s in styles}) == len(families), attribute
    labelled, unlabelled = plots.method_style("isolated"), plots.method_style("isolated(labelled=False)")
    assert (labelled.dash, labelled.symbol) != (unlabelled.dash, unlabelled.symbol)
    assert unlabelled.symbol.startswith(labelled.symbol)
    assert plots.method_style("somebody-elses") == plots.method_style("somebody-elses")
    for style in [*styles, unlabelled, plots.method_style("somebody-elses")]:
        go.Figure(go.Scatter(marker_symbol=style.symbol, line_dash=style.dash))
        go.Figure(go.Bar(marker_pattern_shape=style.pattern, marker_color=style.colour))


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_colour_scales_survive_a_grey_print() -> None:
    steps = [lightness(str(c)) for _, c in theme.SEQUENTIAL]
    assert steps == sorted(steps, reverse=True)
    assert min(np.diff(steps[::-1])) > 0.05
    loss, middle, gain = (lightness(str(theme.DIVERGING[i][1])) for i in (0, 2, 4))
    assert loss < gain - 0.1 < middle


@pytest.mark.parametrize("dark", [False, True])
def test_marks_and_words_are_seen_on_a_page_and_in_what_it_exports(dark: bool) -> None:
    page = "#171614" if dark else "#ffffff"
    colours = [plots.method_style(m).colour for m in ("null-edit", "isolated", "naive", "repaired", "oracle", "last-k")]
    colours += [*theme.SERIES_COLOURS, *theme.SLOT_COLOURS, *theme.ROLE_COLOURS.values(), picks.FADED]
    assert min(contrast(c, page) for c in colours) < 3
    fig = go.Figure(go.Bar(x=colours, y=colours, text=colours, marker_color=colours))
    fig.add_scatter(y=[1], line_color=theme.SERIES_COLOURS[0], error_y={"array": [1], "color": theme.ALARM})
    fig.add_sankey(node={"color": colours}, link={"color": "rgba(0,0,0,0.4)"})
    theme.caption(fig, "#7b8494")
    seen: Any = theme.on_page(fig, dark)
    bar, line, flow = seen.data
    drawn = [*bar.marker.color, *flow.node.color, line.line.color, line.error_y.color]
    assert min(contrast(c, page) for c in drawn) >= 3
    assert contrast(seen.layout.annotations[0].font.color, page) >= 4.5
    assert (list(bar.x), list(bar.text), seen.layout.annotations[0].text) == (colours, colours, "#7b8494")
    assert list(fig.data[0].marker.color) == colours
    assert flow.link.color == "rgba(0,0,0,0.4)"
    kept = [c for c in colours if contrast(c, page) >= 3]
    assert kept == [b for a, b in zip(colours, bar.marker.color, strict=True) if a in kept]
    if not dark:
        assert colours[1].encode() not in export.render(go.Figure(go.Bar(y=[1], marker_color=colours[1])), "html")


def test_a_slots_number_is_read_on_its_colour() -> None:
    names = [f"candidate:{s}" for s in range(1, 9)]
    fig: Any = plots.influence_graph(names, np.zeros((8, 8)), np.ones(8))
    nodes = [t for t in fig.data if t.mode == "markers+text" and t.text[0]]
    assert len(nodes) == 8
    assert min(contrast(t.textfont.color, t.marker.color) for t in nodes) >= 4.5


@pytest.mark.parametrize("text", [*HOSTILE, "<a href='javascript:1'>x</a>", "$$e^x$$", "&lt;b&gt;", "a\nb"])
def test_inert_text_holds_no_markup(text: str) -> None:
    shown = plots.inert(text)
    assert not re.search(r"[<>$\n\x00-\x1f\u202a-\u202e]", shown)
    assert "&" not in re.sub(r"&(amp|lt|gt|#36|#37);", "", shown)
    assert len(re.sub(r"&[^;]+;", "x", plots.inert(text, 10))) <= 10


GATED = {"coverage": 0.5, "risk": 0.1, "risk_low": 0.0, "risk_high": 0.2, "random_risk": 0.3, "cost": 0.8, "jcr": 0.9}
GATED["random_jcr"] = 0.7


def all_figures(means: Any, name: str = "naive") -> dict[str, go.Figure]:
    """One figure of every function, with a method of that name."""
    means = means.replace({"method": {"naive": name}})
    table = jcr_table().replace({"method": {"naive": name}})
    slots: Any = stats.slot_values(means)
    values = slots.groupby(["method", "slot", "layer", "head"], as_index=False)["value"].mean()
    by_slot = stats.over_questions(values.groupby(["method", "slot"], as_index=False)["value"].mean())
    by_layer = values.groupby(["method", "slot", "layer"], as_index=False)["value"].mean()
    slots_picked = pd.DataFrame({"method": ["dense", name], "slot": [1, 2], "share": [1.0, 1.0], "count": [8, 8]})
    distances = pd.concat([table.assign(distance=d, pairs=5) for d in (0, 3)])
    names, segments = layout()
    _, decisions = FAKE.unit(0)
    return {
        "grid": plots.slot_mass_grid(values),
        "change": plots.slot_mass_grid(values, change=True),
        "by_slot": plots.dilution_by_slot(by_slot),
        "by_layer": plots.dilution_panels(by_layer, "slot", over="layer"),
        "histogram": plots.slot_histogram(slots_picked),
        "jcr": plots.jcr_bars(table, floor=(0.9, 1.0)),
        "meaningless": plots.jcr_bars(table, meaningless=name),
        "ladder": plots.ladder(table, ["dense", "true-mask", name], steps={name: name}, meaningless=name),
        "shuffle": plots.shuffle(distances),
        "runs": plots.consistency_of_runs(table.assign(run=name)),
        "panels": plots.dilution_panels(by_slot.assign(panel=name), "panel"),
        "gate": gates.risk_coverage({name: [GATED]}),
        "gate cost": gates.gate_cost({name: [GATED]}),
        "flow": plots.flow(pd.DataFrame({"base_slot": [1, 1], "slot": [1, 2], "count": [3, 4]}), name),
        "row": plots.decision_row([name] * len(names), np.full(len(names), 0.1), segments, title=name),
        "comparison": plots.comparison([d for d in decisions if d.order == decisions[0].order]),
    }


def layout() -> tuple[list[str], list[SimpleNamespace]]:
    spans = [("prefix", None, 2), ("header", 0, 1), ("candidate", 0, 3), ("header", 1, 1), ("candidate", 1, 0)]
    segments, at = [], 0
    for role, slot, length in [*spans, ("suffix", None, 2)]:
        name = role if slot is None else f"{role}:{slot + 1}"
        segments.append(SimpleNamespace(role=role, slot=slot, name=name, start=at, stop=at + length))
        at += length
    return [f"t{i}" for i in range(at)], segments


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_figure_passes_model_text_on_as_markup(means: Any, hostile: str) -> None:
    for kind, fig in all_figures(means, hostile).items():
        figure = json.loads(str(fig.to_json()))
        for trace in figure["data"]:
            trace.pop("legendgroup", None)  # a key that is never shown
        figure["layout"].pop("template")
        for text in strings(figure):
            rest = text.replace("<br>", "").replace("<extra></extra>", "")
            assert not re.search(r"[<$]|%\{customdata\} ", rest), (kind, text)


def test_heatmaps_show_heads_down_and_layers_across(means: Any) -> None:
    slots: Any = stats.slot_values(means)
    values = slots.groupby(["method", "slot", "layer", "head"], as_index=False)["value"].mean()
    grid: Any = plots.slot_mass_grid(values, ["naive", "dense"])
    assert len(grid.data) == 2 * 4
    assert {t.coloraxis for t in grid.data} == {"coloraxis"}
    first = values.query("method == 'naive' and slot == 1").pivot(index="head", columns="layer", values="value")
    np.testing.assert_allclose(np.array(grid.data[0].z, dtype=float), first.to_numpy(), atol=1e-5)


def test_changes_are_drawn_around_one_as_factors() -> None:
    cells = [("naive", 1, 0, 0, np.log(0.5)), ("naive", 1, 0, 1, 0.0), ("naive", 1, 1, 0, np.log(1.25))]
    fig: Any = plots.slot_mass_grid(
        pd.DataFrame(cells, columns=["method", "slot", "layer", "head", "value"]), change=True
    )
    scale = fig.layout.coloraxis
    assert scale.cmin == -scale.cmax
    assert scale.cmid == 0
    assert scale.cmax == pytest.approx(np.log(2), abs=0.02)
    ticks = dict(zip(scale.colorbar.ticktext, scale.colorbar.tickvals, strict=True))
    assert ticks["×1"] == 0
    assert ticks["×0.7"] == pytest.approx(np.log(0.7))
    z = np.array(fig.data[0].z, dtype=float)
    assert np.isnan(z[1, 1])  # nothing was given for layer 1, head 1
    assert np.array(fig.data[0].customdata, dtype=float)[0, 0] == pytest.approx(0.5)


def test_lines_carry_the_values_and_intervals_of_their_table() -> None:
    """Of all figures that draw a line a method or run: over slots, in panels, over layers, distance, depth."""
    table = pd.DataFrame({"slot": [2, 1], "value": [0.2, 0.6], "low": [0.1, 0.4], "high": [0.5, 0.7]})
    table = table.assign(
        method="naive", layer=[1, 0], depth=[1.0, 0.0], run="a", distance=[3, 0], jcr=table["value"], pairs=9
    )
    figures = {
        "slot": plots.dilution_by_slot(table),
        "panels": plots.dilution_panels(table.assign(part=1), "part"),
        "layer": plots.dilution_panels(table.assign(slot=1), "slot", over="layer"),
        "distance": plots.shuffle(table),
        "depth": plots.by_depth(table),
    }
    for name, fig in figures.items():
        line: Any = next(t for t in fig.data if t.name)
        assert list(line.y) == [0.6, 0.2], name
        assert list(line.x) == sorted(line.x), name
        if line.error_y.array is not None:
            np.testing.assert_allclose(line.error_y.array, [0.1, 0.3], err_msg=name)
            np.testing.assert_allclose(line.error_y.arrayminus, [0.2, 0.1], err_msg=name)
        else:
            band: Any = next(t for t in fig.data if t.fill)
            assert list(band.y) == [0.7, 0.5, 0.1, 0.4], name


def test_a_meaningless_jcr_is_grey_and_says_why() -> None:
    reason = "the judge picks slot 1 whatever stands in it"
    for fig in (
        plots.jcr_bars(jcr_table(), meaningless=reason),
        plots.ladder(jcr_table(), METHODS, meaningless=reason),
        plots.shuffle(jcr_table().assign(distance=0, pairs=5), meaningless=reason),
    ):
        figure = json.loads(str(fig.to_json()))
        figure["layout"].pop("template")
        text = " ".join(strings(figure)).lower()
        assert reason.lower() in text
        assert "not meaningful" in text
        coloured = [m for m in METHODS if m != "dense" and plots.method_style(m).colour.lower() in text]
        assert coloured == []


def test_jcr_bars_carry_intervals_chance_and_floor() -> None:
    fig: Any = plots.jcr_bars(jcr_table()[1:], floor=(0.9, 0.98))
    marks, chance = (next(t for t in fig.data if t.legendgroup == g) for g in ("JCR", "tick"))
    rows = dict(zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext, strict=True))
    assert {rows[y]: x for y, x in zip(marks.y, marks.x, strict=True)} == dict(
        zip(METHODS[1:], (0.9, 0.8, 0.7, 0.5, 0.3, 0.95), strict=True)
    )
    assert [rows[y] for y in sorted(rows, reverse=True)] == list(METHODS[1:])  # the first row of the table on top
    assert {t.x[0] for t in fig.data if t.type == "bar"} == set(marks.x)
    np.testing.assert_allclose(marks.error_x.arrayminus, 0.1)
    np.testing.assert_allclose(marks.x + marks.error_x.array, np.minimum(1, marks.x + 0.1))
    assert list(chance.x) == [0.3] * 6
    assert list(chance.y) == list(marks.y)
    assert [(s.x0, s.x1) for s in fig.layout.shapes] == [(0.9, 0.98)]


def test_a_forest_sets_series_side_by_side_and_strokes_beside_their_own() -> None:
    table = pd.DataFrame(
        {
            "run": ["a", "a", "b", "b"],
            "method": ["naive", "isolated"] * 2,
            "jcr": [0.5, 0.6, 0.7, 0.8],
            "low": [0.4, 0.5, 0.6, 0.7],
            "high": [0.6, 0.7, 0.8, 0.9],
            "chance": [0.1, 0.2, 0.3, None],
        }
    )
    fig: Any = plots.consistency_of_runs(table, ["b"])
    rows = dict(zip(fig.layout.yaxis.ticktext, fig.layout.yaxis.tickvals, strict=True))
    assert list(rows) == ["a", "b (not meaningful)"]
    naive, isolated, chance, *legend = fig.data
    assert [list(t.x) for t in fig.data[:3]] == [[0.5, 0.7], [0.6, 0.8], [0.1, 0.2, 0.3]]
    assert all(naive.y > isolated.y)  # the first series is the upper one
    np.testing.assert_allclose((naive.y + isolated.y) / 2, list(rows.values()))
    assert list(chance.y) == [naive.y[0], isolated.y[0], naive.y[1]]
    style = plots.method_style("naive")
    assert list(naive.marker.color) == [style.colour, picks.FADED]
    assert set(naive.marker.symbol) == {style.symbol}
    assert [(t.name, t.marker.color) for t in legend] == [
        (m, plots.method_style(m).colour) for m in ("naive", "isolated")
    ]
    grey: Any = plots.consistency_of_runs(table, ["a", "b"])
    assert [t.marker.color for t in grey.data[3:]] == [t.marker.color for t in legend]


def test_a_forest_has_room_for_a_series_and_strokes_that_a_panel_lacks() -> None:
    marks = pd.DataFrame(
        {"panel": ["a", "b", "b"], "row": ["x"] * 3, "series": ["s", "s", "t"], "value": [0.1, 0.2, 0.3]}
    )
    ticks = pd.DataFrame({"panel": ["a"], "row": ["x"], "value": [0.5]})
    fig: Any = plots.forest(marks, ticks)
    assert [list(t.x) for t in fig.data[:6]] == [[0.1], [], [0.5], [0.2], [0.3], []]


def test_histogram_panels_show_the_reference_too() -> None:
    table = pd.DataFrame(
        {
            "method": ["dense"] * 3 + ["naive"] * 3,
            "slot": [1, 2, 3] * 2,
            "share": [0.6, 0.4, 0.0, 1.0, 0.0, 0.0],
            "count": [6, 4, 0, 10, 0, 0],
            "uniform": [0.4, 0.4, 0.2] * 2,
        }
    )
    fig: Any = plots.slot_histogram(table, ["dense", "naive"])
    bars = [t for t in fig.data if t.type == "bar"]
    assert [list(b.y) for b in bars] == [[0.6, 0.4, 0.0], [1.0, 0.0, 0.0]]
    lines, marks = ([t for t in fig.data if t.type == "scatter" and t.mode == m] for m in ("lines", "markers"))
    assert [list(m.y) for m in marks] == [[0.6, 0.4, 0.0]]
    assert [list(t.y) for t in lines] == [[0.4, 0.4, 0.2]] * 2


@pytest.mark.parametrize(
    ("method", "solid", "dotted"),
    [("dense", 3, 0), ("true-mask", 0, 0), ("naive-linked", 0, 3), ("naive", 0, 0), ("isolated", 0, 0)],
)
def test_the_influence_graph_draws_what_candidates_hold_apart_from_headers(
    method: str, solid: int, dotted: int
) -> None:
    runs: list[Any] = []
    Judge(engine("llama")).judge(short_prompt("What is 2+2?", ("two", "it's 5", "four!")), [method], keep=runs)
    graph = explain(runs[0].plan)
    fig: Any = plots.influence_graph(graph.names, graph.reaches.numpy(), graph.decision.numpy())
    above = [t for t in fig.data if t.mode == "lines" and max(t.y) > 0]
    assert [sum(t.line.dash == d for t in above) for d in ("solid", "dot")] == [solid, dotted]
    shown = any("no candidate can change" in a.text for a in fig.layout.annotations)
    assert shown == (not solid)


def test_rows_of_kept_segments_are_empty_beside_even_attention_too() -> None:
    own = np.array([[1.0, 0.0, 0.0], [np.nan] * 3, [np.nan] * 3])
    even = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [np.nan] * 3])
    fig: Any = plots.block_matrix(own, ("prefix", "candidate:1", "separator:1"), even)
    np.testing.assert_array_equal(np.array(fig.data[1].z, dtype=float), own)
    assert [a.text for a in fig.layout.annotations if a.text.startswith(("kept", "no "))] == [
        *("kept: no queries", "no tokens") * 2
    ]


def test_the_ladder_keeps_the_order_of_the_rungs_and_leaves_out_absent_ones() -> None:
    bare = jcr_table()
    bare.loc[bare["method"] == "foreign-kv", "jcr"] = float("nan")  # no pair with dense
    assert not plots.ladder(bare, ["true-mask", "naive"]).layout.shapes
    assert plots.ladder(jcr_table(), ["true-mask", "naive"]).layout.shapes
    fig: Any = plots.ladder(jcr_table(), ["dense", "true-mask", "absent", "isolated", "naive"])
    assert list(fig.layout.xaxis.ticktext) == ["dense", "true-mask", "isolated", "naive"]
    assert list(fig.data[0].y) == [1.0, 0.9, 0.8, 0.5]
    assert any("foreign-kv 30%" in a.text for a in fig.layout.annotations)


def test_the_decision_row_gives_exact_values_and_brackets_the_slots() -> None:
    tokens, segments = layout()
    row = np.random.default_rng(0).dirichlet(np.ones(len(tokens)), size=(2, 3))
    fig: Any = plots.decision_row(tokens, row, segments)
    shown = {int(x): y for t in fig.data for x, y in zip(t.x, t.y, strict=True)}
    np.testing.assert_array_equal([shown[i] for i in range(len(tokens))], row.mean((0, 1)))
    brackets = [a.text for a in fig.layout.annotations]
    assert [b.split("<br>")[0] for b in brackets] == ["slot 1", "slot 2"]
    assert [a.yshift for a in fig.layout.annotations] == [0, 26]  # neighbours' words do not meet
    assert brackets[0].endswith(f"{row.mean((0, 1))[3:6].sum():.1%}")
    with pytest.raises(KvattnError, match="8 tokens and a row of 9"):
        plots.decision_row(tokens[:-1], row, segments)


def test_saving_needs_no_network(tmp_path: Path) -> None:
    data = pd.DataFrame({"method": ["naive"], "jcr": [0.5]})
    paths, trouble = plots.save(plots.jcr_bars(jcr_table()), tmp_path / "sub" / "smollm2.5", ("html",), data)
    assert [p.name for p in paths] == ["smollm2.5.html", "smollm2.5.csv"]
    assert trouble is None
    page = paths[0].read_text()
    assert re.findall(r"<script[^>]*src=\"([^\"]*)\"", page) == ["plotly.min.js"]
    assert (paths[0].parent / "plotly.min.js").stat().st_size > 1_000_000
    assert "http" not in page.replace("http://www.w3.org", "").split("Plotly.newPlot")[0]
    assert paths[1].read_text() == "method,jcr\nnaive,0.5\n"
    with pytest.raises(KvattnError, match="unknown figure format 'gif'"):
        plots.save(go.Figure(), tmp_path / "x", ("gif",))


def test_without_a_browser_one_line_says_how_to_get_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    paths, trouble = plots.save(go.Figure(), tmp_path / "fig", ("html", "png", "pdf"))
    assert [p.name for p in paths] == ["fig.html"]
    assert trouble is not None
    assert "\n" not in trouble
    assert trouble.startswith("no pdf, png: no Chromium was found; install chromium or set BROWSER_PATH")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    paths, trouble = plots.save(go.Figure(), tmp_path / "fig", ("svg",))
    assert trouble is not None
    assert "broken failed" in trouble
    assert "\n" not in trouble
    assert not (tmp_path / "fig.svg").exists()


def test_pictures_are_exported(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    if export.find_browser() is None:
        pytest.skip("no Chromium on this machine, so no static pictures")
    paths, trouble = plots.save(plots.jcr_bars(jcr_table()), tmp_path / "fig", data=None)
    assert trouble is None
    assert [p.suffix for p in paths] == [".html", ".svg", ".pdf", ".png"]
    heads = [p.read_bytes()[:8] for p in paths[1:]]
    assert heads[0].startswith(b"<svg")
    assert heads[1].startswith(b"%PDF-")
    assert heads[2] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(paths[3].read_bytes()[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (1800, 2 * (110 + 40 * len(METHODS)))
    assert "foreign-kv" in paths[1].read_text()
    again, _ = plots.save(plots.jcr_bars(jcr_table()), tmp_path / "again", ("svg",))
    assert again[-1].read_bytes() == paths[1].read_bytes()  # plotly.js names its parts by chance
    other, _ = plots.save(plots.jcr_bars(jcr_table()).update_xaxes(range=[0, 2]), tmp_path / "other", ("svg",))
    assert other[-1].read_bytes() != paths[1].read_bytes()


@pytest.mark.parametrize("height", [236, 420, 900])
def test_a_legend_below_stands_between_the_title_of_the_axis_and_the_lower_edge(height: int) -> None:
    fig = plots.legend_below(go.Figure(), height)
    legend: Any = fig.layout.legend
    assert (legend.yanchor, fig.layout.height) == ("top", height)
    assert 45 <= -legend.y * (height - 128) <= 60  # pixels below the axis: ticks and title take some 45


@pytest.mark.parametrize("shares", [True, False])
def test_the_axis_of_slots_by_layer_ends_where_the_values_do(shares: bool) -> None:
    values = pd.DataFrame({"panel": "dense", "slot": [1, 1], "layer": [0, 1], "value": [0.2, 0.6]})
    low, high = plots.slots_by_layer(values, "value", shares).layout.yaxis.range
    assert low == 0
    assert high == pytest.approx(1.03 if shares else 0.618)


def test_ticks_of_factors_stand_apart():
    from kvattn.plots.scales import FACTORS, apart

    for end in (0.1, 0.5, 1.6, 4.0):
        kept = apart([f for f in FACTORS if abs(np.log(f)) <= end], end / 7)
        assert 1.0 in kept
        assert np.diff(np.log(kept)).min(initial=np.inf) >= end / 7
    assert apart([0.5, 1, 1.2, 2], 0.6) == [0.5, 1.0, 2]


def test_every_method_of_the_zoo_has_a_style_of_its_own_and_variants_can_be_drawn() -> None:
    from kvattn import methods

    names = [*methods.registry(), *(m.name for m in methods.HELPED), "dense(a=1)"]
    assert len({plots.method_style(n).colour for n in names}) == len(names)
    assert len({plots.method_style(n).symbol for n in names[:-1]}) == len(names) - 1
    for name in names:
        for style in (plots.method_style(name), *(plots.method_style(f"{name}(budget=0.{i})") for i in range(5))):
            go.Figure(go.Scatter(marker_symbol=style.symbol, line_dash=style.dash))


def test_slots_stand_in_their_order_on_both_sides_of_the_flow() -> None:
    pairs = pd.DataFrame({"base_slot": [1, 2, 3, 4, 3], "slot": [4, 4, 4, 4, 2], "count": [10, 10, 18, 21, 1]})
    node: Any = plots.flow(pairs, "naive").data[0].node
    half = len(node.label) // 2
    assert list(node.label[:half]) == ["slot 1", "slot 2", "slot 3", "slot 4"]
    assert list(node.label[half:]) == ["", "", "", "slot 4"]  # a thread would cross the name of a sliver
    assert list(node.customdata) == [1, 2, 3, 4] * 2
    for side in (node.y[:half], node.y[half:]):
        assert list(side) == sorted(side)
    assert node.y[0] == pytest.approx(10 / 60 / 2)
    assert node.y[-1] == pytest.approx(1 - 59 / 60 / 2)


def test_ticks_of_factors_stand_apart_however_far_the_data_reach() -> None:
    for far in (1.1, 3.0, 60.0):
        values = pd.DataFrame({"run": "a", "depth": [0.0, 1.0], "value": [0.0, np.log(far)]})
        axis: Any = plots.by_depth(values, change=True).layout.yaxis
        ticks = np.log(axis.tickvals)
        assert 0.0 in ticks
        assert np.diff(ticks).min() >= np.log(far) / 7 - 1e-9


def test_one_panel_with_two_questions_does_not_flatten_the_others() -> None:
    columns = ["method", "slot", "distance", "value", "low", "high"]
    rows = [("naive", 1, 0, 0.1, 0.09, 0.11), ("naive", 2, 0, 0.2, 0.19, 0.21), ("naive", 1, 1, 0.1, -0.9, 1.1)]
    fig: Any = plots.dilution_panels(pd.DataFrame(rows, columns=columns), "distance")
    assert fig.layout.yaxis.range[1] == pytest.approx(0.3)
    calm: Any = plots.dilution_panels(pd.DataFrame(rows[:2], columns=columns), "distance")
    assert calm.layout.yaxis.range[1] == pytest.approx(0.21 * 1.05)


def test_a_frontier_shows_chance() -> None:
    table = pd.DataFrame(
        {
            "method": ["dense", "naive"],
            "share": [1.0, 0.4],
            "jcr": [1.0, 0.5],
            "low": 0.4,
            "high": 1.0,
            "chance": [None, 0.3],
        }
    )
    marks: Any = next(t for t in plots.frontier(table).data if t.name == "by chance")
    assert (list(marks.x), list(marks.y)) == ([0.4], [0.3])
    assert "by chance" not in {t.name for t in plots.frontier(table.drop(columns="chance")).data}
