"""What the project says of itself in one file holds in the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
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


@pytest.mark.parametrize("extra", ["", "app", "audit", "bench", "data", "export", "fuzz", "inspect", "ray", "dev"])
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


def test_the_workflow_runs_the_readmes_two_commands_on_every_python_from_the_oldest() -> None:
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "test.yml").read_text())
    said = (CHECKOUT / "README.md").read_text().split("## Two commands")[1]
    commands = re.findall(r"^(make \w+)", said.split("```sh\n")[1].split("```")[0], re.MULTILINE)
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == commands == ["make demo", "make test"]
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]
    assert all(f"Programming Language :: Python :: {version}" in PROJECT["classifiers"] for version in pythons)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_issue_forms_ask_for_what_helps() -> None:
    forms = {p.stem: yaml.safe_load(p.read_text()) for p in (CHECKOUT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.pop("config") == {"blank_issues_enabled": False}
    assert set(forms) == {"bug", "method", "question"}
    for form in forms.values():
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
    assert any("kvattn doctor" in field["attributes"]["label"] for field in forms["bug"]["body"])


def test_heavy_libraries_wait_until_they_are_needed() -> None:
    """One process imports one module after the other, and says after each what came with it."""
    heavy = ("torch", "transformers", "kaleido", "plotly", "pandas", "duckdb")
    code = "import sys, importlib\nfor module in sys.argv[1].split():\n    importlib.import_module(module)\n"
    code += f"    print(module, *(m for m in {heavy} if m in sys.modules))"
    command = [sys.executable, "-c", code, "kvattn kvattn.models.source kvattn.cli.main kvattn.plots"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    *light, figures = done.stdout.splitlines()
    assert light == ["kvattn", "kvattn.models.source", "kvattn.cli.main"]
    assert not {"torch", "transformers", "kaleido"} & set(figures.split())  # figures load no model
