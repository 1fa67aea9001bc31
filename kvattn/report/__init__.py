"""A run as one HTML page that needs no network: `write_report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kvattn.errors import KvattnError
from kvattn.files import write_output
from kvattn.report import attention, decisions, health
from kvattn.report.facts import Facts
from kvattn.report.findings import content
from kvattn.report.page import Page, macros, paragraph, text
from kvattn.study.run_folder import Run

__all__ = ["write_report"]


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run and returns its path.

    out: the file to write (default: report.html in the run folder)

    The content test's verdict comes first: where the judge failed it, JCR is called meaningless and shown grey. Raises
    KvattnError for a folder that is no run, is damaged, or holds no finished question or no dense judgements.
    """
    facts = Facts(Run(run_folder).sound())
    model = facts.manifest.get("model") or {}
    name = str(model.get("id") or model.get("name") or "a judge")
    page = Page(f"{name}: does reusing KV caches change its decisions?")
    build(page, facts)
    title = [text(name, 120), " as a judge: does reusing KV caches change what it decides?"]
    counts = f"{len(facts.run)} questions, {facts.size['orders']} orders, {len(facts.methods)} methods; run "
    lead = macros().lead(title, [counts, text(facts.run.folder.name, 80)], health.boxes(content(facts.run)))
    path = Path(out) if out is not None else facts.run.folder / "report.html"
    return write_output(path, page.render(lead).encode("utf-8"))


def build(page: Page, facts: Facts) -> None:
    """Fills the page with all sections but those that have nothing to say."""
    sections: list[tuple[str, str, Callable[[Facts, Page], Sequence[str]]]] = [
        ("jcr", "Consistency with dense", decisions.consistency),
        ("split", "Shift and content", decisions.measures),
        ("accuracy", "Accuracy", decisions.accuracy),
        ("ladder", "The ladder", decisions.ladder),
        ("slots", "Slots picked", decisions.slots),
        ("attention", "Attention of the decision row", attention.heatmaps),
        ("dilution", "Dilution", attention.dilution),
        ("shuffling", "What shuffling does", decisions.shuffling),
        ("flips-by-mass", "What goes with flips", attention.flips_by_mass),
        ("flips", "Flips", decisions.flips),
        ("health", "Health", health.health),
        ("cost", "Cost", health.cost),
        ("run", "The run", health.run_facts),
        ("words", "Words", health.definitions),
    ]
    for key, title, make in sections:
        try:
            parts = make(facts, page)
        except KvattnError as error:
            parts = [paragraph("Cannot be shown: ", text(error, 400))]
        if parts:
            page.section(key, title, *parts)
