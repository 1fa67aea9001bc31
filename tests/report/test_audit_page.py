"""The page of an audit: its maps show what was planted where, and hostile names and tokens stay text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import engine

from benchmarks.audit import LENGTH, START, STOP, Bench
from kvattn.errors import KvattnError
from kvattn.plots.drift import FAR, drift_map
from kvattn.report import audit as report


def test_the_map_is_red_where_the_cache_is_off_and_blue_elsewhere() -> None:
    here = engine()
    case = Bench(here, here, 2).dense()
    case.values[2, :, START:STOP] += 1
    found = case.audit(here)
    fig = drift_map(found.drift.numpy(), found.near.numpy(), ["t"] * LENGTH, {"block": (START, STOP)})
    z = np.asarray(fig.data[0].z)  # type: ignore[union-attr]
    assert z.shape == (here.layers, LENGTH)
    assert (z[2, START:STOP] > 0).all()
    assert (np.delete(z, 2, 0) <= 0).all()
    assert np.abs(z).max() <= FAR
    with pytest.raises(KvattnError, match="one a token and one a layer"):
        drift_map(found.drift.numpy(), found.near.numpy(), ["t"], {})


def test_the_page_shows_faults_and_keeps_hostile_text_inert(tmp_path: Path, monkeypatch) -> None:
    here, hostile = engine(), "</script><script>alert(1)</script>"
    monkeypatch.setattr(report, "AT_ONCE", 20)  # so that a prompt takes several maps
    case = Bench(here, here, 2).turn(lambda at: at + 9, slice(START, STOP))
    found = case.audit(here)
    out = report.write_audit(found, [hostile] * LENGTH, tmp_path / "deep" / "page.html", hostile)
    html = out.read_text(encoding="utf-8")
    assert "keys 9 positions late" in html
    assert "It is not what is claimed." in html
    assert hostile not in html
    assert html.count('class="plot"') == 3
    with pytest.raises(KvattnError, match="one a row"):
        report.write_audit(found, ["x"], out)
    (tmp_path / "file").write_text("")
    with pytest.raises(KvattnError, match="cannot be written"):
        report.write_audit(found, ["x"] * LENGTH, tmp_path / "file" / "page.html")


def test_a_cache_of_more_rows_than_ids_has_a_page(tmp_path: Path) -> None:
    here = engine()
    bench = Bench(here, here, 2)
    case = bench.of(torch.cat([bench.ids[:1], bench.ids]))
    found = case.audit(here)
    assert report.write_audit(found, ["x"] * (LENGTH + 1), tmp_path / "page.html").is_file()
