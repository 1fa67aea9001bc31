"""What the project says of itself in one file holds in the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import CHECKOUT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    """Package name to pinned version, from constraints.txt."""
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_every_pin_is_an_exact_public_version() -> None:
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())


@pytest.mark.parametrize("extra", ["", "app", "audit", "bench", "data", "export", "fuzz", "ray", "dev"])
def test_every_requirement_is_pinned_within_its_bounds(extra: str) -> None:
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for requirement in (r for r in map(Requirement, wanted) if r.name != "kvattn"):  # an extra may name another
        assert requirement.specifier.contains(pins()[requirement.name], prereleases=True)


def test_the_version_is_the_same_everywhere() -> None:
    import kvattn

    assert kvattn.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (CHECKOUT / "CITATION.cff").read_text()


def test_ci_runs_what_the_readme_says() -> None:
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)
    assert (CHECKOUT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
    assert "make test" in (CHECKOUT / "README.md").read_text()


@pytest.mark.parametrize("module", ["kvattn", "kvattn.models", "kvattn.cli"])
def test_heavy_libraries_wait_until_they_are_needed(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'plotly', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
