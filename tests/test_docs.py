"""The documentation as a site: it builds strictly, links lead somewhere, and nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

pytest.importorskip("mkdocs", reason="mkdocs is not installed (kvattn[docs])")

if not (CHECKOUT / "mkdocs.yml").exists():
    pytest.skip("the documentation is not here (a source distribution)", allow_module_level=True)

# What a page loads by itself; links that are only followed on a click may lead out.
LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*?\ssrc=\"?([^\"\s>]+)|<link[^>]*?\shref=\"?([^\"\s>]+)[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    names = {p.relative_to(site).as_posix() for p in pages}
    assert {"index.html", "concepts/index.html", "gpus/index.html", "methods/naive/index.html"} <= names
    for page in pages:
        loaded = [a or b for a, b in LOADED.findall(page.read_text(encoding="utf-8"))]
        assert loaded
        outside = [url for url in loaded if re.match(r"(https?:)?//", url)]
        assert outside == [], page
        for url in loaded:
            target = (page.parent / url.split("?")[0].split("#")[0]).resolve()
            if not url.startswith(("/", "data:")):
                assert target.exists(), (page, url)


def test_every_method_has_its_card_in_the_navigation(site: Path) -> None:
    from kvattn import methods

    home = (site / "index.html").read_text(encoding="utf-8")
    for name in (*methods.registry(), *(m.name for m in methods.HELPED)):
        assert (site / "methods" / name / "index.html").is_file(), name
        assert f'href="methods/{name}/"' in home, name


def test_pages_that_are_not_there_are_left_out_of_the_navigation(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "docs"))
    from hooks import _there

    (tmp_path / "here.md").write_text("# Here\n")
    entries = [{"Here": "here.md"}, {"Gone": "gone.md"}, {"Both": ["here.md", "gone.md"]}]
    assert _there(entries, tmp_path) == [{"Here": "here.md"}, {"Both": ["here.md"]}]


def test_files_that_pages_name_are_there() -> None:
    for page in [*(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]:
        for name in re.findall(r"\b(?:tests|analyses|benchmarks)/[\w/]+\.py\b", page.read_text(encoding="utf-8")):
            assert (CHECKOUT / name).is_file(), f"{page.name} names {name}"
