"""The notebooks: they run from top to bottom, and what stands in them is what comes out."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT

from kvattn.judge.comparison import Comparison

NOTEBOOKS = sorted((CHECKOUT / "docs" / "notebooks").glob("*.ipynb"))
if not NOTEBOOKS:
    pytest.skip("the notebooks are not here (a source distribution)", allow_module_level=True)


def cells(path: Path) -> list[dict[str, Any]]:
    """The code cells."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in found if c["cell_type"] == "code"]


def run(code: str, names: dict[str, Any]) -> Any:
    """The value of the cell's last expression, None where it ends in none."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_begins_with_its_installation_and_shows_what_was_run(path: Path) -> None:
    first, *rest = cells(path)
    assert first["source"] == ["%pip install -q kvattn"]
    for cell in rest:
        kinds = [o["output_type"] for o in cell["outputs"]]
        assert "error" not in kinds
        assert all(o.get("name") != "stderr" for o in cell["outputs"])
        shows = isinstance(ast.parse("".join(cell["source"])).body[-1], ast.Expr)
        assert bool(kinds) == shows, cell["source"]
    assert sum(bool(c["outputs"]) for c in rest) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_its_picks_are_those_that_stand_in_it(path: Path, capsys: Any) -> None:
    names: dict[str, Any] = {}
    for cell in cells(path)[1:]:
        value = run("".join(cell["source"]), names)
        printed = capsys.readouterr().out
        stored = [o for o in cell["outputs"] if o["output_type"] == "execute_result"]
        if isinstance(value, Comparison):
            picks = [
                re.sub(r" \(p [\d.]+\)", "", text) for text in (repr(value), "".join(stored[0]["data"]["text/plain"]))
            ]
            assert picks[0] == picks[1]
        if stored:
            assert value is not None
            assert ("text/html" in stored[0]["data"]) == hasattr(value, "_repr_html_")
        else:
            assert printed == "".join(t for o in cell["outputs"] for t in o["text"])
