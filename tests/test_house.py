"""The layout of the house, read off its sources: no import circle, nothing declared that nothing uses, room to find."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import CHECKOUT
from packaging.requirements import Requirement

PACKAGE = CHECKOUT / "kvattn"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What is used without an import: distribution to (file or folder, the text by which it is used).
TOOLS = {
    "cyclonedx-bom": ("Makefile", "$(BIN)/cyclonedx-py environment"),
    "import-linter": ("Makefile", "$(BIN)/lint-imports"),
    "mkdocs-material": ("mkdocs.yml", "\n  name: material\n"),
    "pip-audit": ("Makefile", "$(BIN)/pip-audit --strict"),
    "pre-commit": (".pre-commit-config.yaml", ".venv/bin/pre-commit install"),
    "pyright": ("Makefile", "$(BIN)/pyright"),
    "pytest-timeout": ("pyproject.toml", "\ntimeout = "),
    "pytest-xdist": ("Makefile", "--dist"),
    "polars": ("tests/cli/test_recipes.py", "\nimport polars\n"),
    "ruff": ("Makefile", "$(BIN)/ruff check"),
    "tabulate": ("analyses", ".to_markdown("),  # pandas imports it there
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file, for every module of a package."""
    names = {p: ".".join(p.relative_to(root.parent).with_suffix("").parts) for p in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(path: Path) -> Iterator[str]:
    """Every name that a file imports, wherever in the file: "a.b" for `import a.b`, "a.b" for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circle(root: Path) -> list[str]:
    """An import circle of the package at `root`, file by file, its first name again at the end; empty if there is none.

    Imports inside functions and under TYPE_CHECKING count as every other. `from a import b` leads to the file of a.b if
    that is a module, else to that of a.
    """
    files = modules(root)
    graph = {
        name: {x for i in imported(path) if (x := i if i in files else i.rpartition(".")[0]) in files} - {name}
        for name, path in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]  # from the importing file to the imported one
    return []


def test_no_file_imports_itself_in_a_circle() -> None:
    assert not circle(PACKAGE)


@pytest.mark.parametrize(
    "line",
    [
        "import house.a",
        "from house import a",
        "from house.a import thing",
        "def f():\n    from house.a import thing",
        "if TYPE_CHECKING:\n    from house import a",
    ],
)
def test_a_circle_is_seen_wherever_the_import_stands(tmp_path: Path, line: str) -> None:
    (tmp_path / "house" / "inner").mkdir(parents=True)
    (tmp_path / "house" / "__init__.py").touch()
    (tmp_path / "house" / "a.py").write_text("import os\nfrom house.inner import b\n")
    (tmp_path / "house" / "inner" / "b.py").write_text("from house.c import x\n")
    (tmp_path / "house" / "c.py").write_text("")
    assert not circle(tmp_path / "house")
    (tmp_path / "house" / "c.py").write_text(line)
    arrows = set(pairwise(circle(tmp_path / "house")))
    assert arrows == {("house.a", "house.inner.b"), ("house.inner.b", "house.c"), ("house.c", "house.a")}


def used(top: str, text: str) -> bool:
    """Whether `text` stands in the file, or in a source file of the folder."""
    path = CHECKOUT / top
    return any(text in p.read_text(encoding="utf-8") for p in (path.rglob("*.py") if path.is_dir() else [path]))


@cache
def imports_under(*tops: str) -> set[str]:
    """The top-level names that the source files of these folders import."""
    return {name.split(".")[0] for top in tops for path in (CHECKOUT / top).rglob("*.py") for name in imported(path)}


@cache
def provided() -> dict[str, set[str]]:
    """Installed distribution to the modules it gives."""
    provides: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for name in distributions:
            provides.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(module)
    return provides


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_every_declared_dependency_is_used(extra: str) -> None:
    """Imported by a source file, or a tool that a file of the checkout calls."""
    imports = imports_under("kvattn", "app", *(() if not extra else ("analyses", "benchmarks", "tests", "docs")))
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for name in (Requirement(r).name for r in wanted):
        if name in TOOLS:
            assert used(*TOOLS[name]), f"{name} is declared, and {TOOLS[name]} is nowhere"
        elif name != PROJECT["name"]:  # an extra may name another
            # one that is not installed here (ray, say) gives a module of its own name
            assert provided().get(name, {name.replace("-", "_")}) & imports, (
                f"{name} is declared, and nothing imports it"
            )


def test_the_house_has_few_rooms() -> None:
    packages = {p.parent for p in PACKAGE.glob("*/*.py")}
    assert len(packages) <= 10
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_the_product_reads_no_folder_beside_its_checkout() -> None:
    """The benchmark data beside a developer's checkout are for tests alone."""
    for path in (p for top in ("kvattn", "app", "analyses") for p in (CHECKOUT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value != "shared", path
                assert not re.search(r"(\.\.|parent)/shared\b", node.value), path


def test_the_map_of_contributing_names_every_room() -> None:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The map")[1].split("## ")[0]
    rooms = {p.parent.name + "/" for p in PACKAGE.glob("*/*.py")} | {p.name for p in PACKAGE.glob("*.py")}
    assert rooms - {"__init__.py", "__main__.py"} <= set(re.findall(r"`(\w+(?:/|\.py))`", text))
