"""A pytest plugin: the fixture `kvattn_check` fails a test where verdicts drifted. Nothing heavy is imported before a
test uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvattn.study.drift import Drift


@pytest.fixture
def kvattn_check() -> Callable[..., Drift]:
    """`kvattn check` within a test: kvattn_check(baseline, run, max_flips="5%", method=None, reference="dense").

    Returns what was found (`kvattn.study.drift.Drift`); fails the test where verdicts drifted, and where the runs
    cannot be compared, with the lines that the command prints."""

    def check(baseline: str | Path, run: str | Path, max_flips: str | float = "5%", **how: Any) -> Drift:
        from kvattn.cli.check import share
        from kvattn.errors import KvattnError
        from kvattn.study.drift import drift
        from kvattn.study.run_folder import Run

        try:
            found = drift(Run(baseline).sound(), Run(run).sound(), share(str(max_flips)), **how)
        except KvattnError as error:
            pytest.fail(f"kvattn check: {error}", pytrace=False)
        if not found.passed:
            pytest.fail(f"{found.sentence}\n{found.why}", pytrace=False)
        return found

    return check
