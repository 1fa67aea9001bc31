"""What `make docs` adds to mkdocs: figures from outside docs/, method cards in the navigation, no missing pages.

Pages link to ../figures/..., which works where the repository is browsed; the site has the same files under figures/.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\((?:\.\./)+(figures/[^)\s#]+)\)")


def on_config(config: Any) -> Any:
    """The navigation without pages that are not there, with a card for every method."""
    docs = Path(config.docs_dir)
    config.nav = _there(config.nav, docs)
    cards = [f"methods/{p.name}" for p in sorted((docs / "methods").glob("*.md")) if p.name != "README.md"]
    for section in config.nav:
        if "Methods" in section:
            section["Methods"].append({"Cards": cards})
    return config


def _there(entries: list[Any], docs: Path) -> list[Any]:
    kept = []
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(target, list):
            kept.append({next(iter(entry)): _there(target, docs)})
        elif (docs / target).is_file():
            kept.append(entry)
    return kept


def on_files(files: Files, config: Any) -> Files:
    """Adds the figures that pages link to."""
    for page in files.documentation_pages():
        for path in OUTSIDE.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            if (ROOT / path).is_file() and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to figures, from where the page stands on the site."""
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(rf"]({up}\1)", markdown)
