"""The report: verdict first, the numbers of the statistics, one page without a network, text that stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from fake_run import HOSTILE, Fake, write_fake_run

from kvattn import stats
from kvattn.errors import KvattnError
from kvattn.plots import export
from kvattn.plots.picks import FADED
from kvattn.report import page as pieces
from kvattn.report import write_report
from kvattn.report.facts import Facts
from kvattn.report.findings import findings
from kvattn.report.page import Page, macros, paragraph, percent, text
from kvattn.study.run_folder import Run, RunWriter
from kvattn.study.run_folder.mass import head_change

SMALL = Fake(
    questions=8, orders=4, layers=3, heads=2, methods=("dense", "true-mask", "naive", "foreign-kv", "null-edit")
)


class Parsed(HTMLParser):
    """What a browser would see: elements with attributes, shown text, and scripts by type."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        elif where == "style":
            self.styles.append(data)
        else:
            self.shown.append(data)

    @property
    def body(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.shown))

    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(s) for kind, s in self.scripts if kind == "application/json" and '"data"' in s]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "ok", SMALL)


@pytest.fixture(scope="module")
def page(folder: Path) -> Parsed:
    return Parsed(write_report(folder).read_text(encoding="utf-8"))


def report(folder: Path) -> Parsed:
    return Parsed(write_report(folder).read_text(encoding="utf-8"))


def test_the_verdict_comes_first_in_plain_language(folder: Path, page: Parsed) -> None:
    sentence = Run(folder).manifest["content_test"]["raw"]["reading"]["sentence"]
    at = [page.body.index(s) for s in ("Content test", sentence[1:], "picks the same candidate as")]
    assert at == sorted(at)
    assert "not meaningful" not in page.body.lower()
    assert not any(attributes.get("class") == "faded" for _, attributes in page.elements)


def test_a_judge_that_does_not_read_has_a_grey_jcr_with_the_reason(tmp_path: Path) -> None:
    page = report(write_fake_run(tmp_path / "bad", replace(SMALL, signal=0.0)))
    assert page.body.index("it does not read") < page.body.index("Not meaningful")
    assert "Not meaningful: by its content test the judge does not read" in page.body
    assert sum(attributes.get("class") == "faded" for _, attributes in page.elements) == 2
    bars = next(f for f in page.figures() if any("JCR:" in str(a) for a in f["layout"].values()))
    colours = {t["marker"]["color"] for t in bars["data"] if t["type"] == "bar"}
    assert colours == {FADED}
    assert any("not meaningful" in a["text"] for a in bars["layout"]["annotations"])


def test_only_the_kind_of_choice_that_failed_is_grey(tmp_path: Path) -> None:
    made = SMALL.content_tests()["raw"]
    raw, calibrated = ({**made, "reading": {**made["reading"], "verdict": v}} for v in ("does not read", "cannot tell"))
    tests = {"raw": raw, "calibrated": calibrated}
    page = report(write_fake_run(tmp_path / "half", SMALL, content_test=tests))
    assert sum(attributes.get("class") == "faded" for _, attributes in page.elements) == 1
    assert "Read the JCR below with care" in page.body


def test_the_tables_hold_the_numbers_of_the_statistics(folder: Path, page: Parsed) -> None:
    run = Run(folder)
    judgements, questions = run.judgements(), run.questions()
    for column in ("choice", "choice_calibrated"):
        frame: Any = stats.jcr(judgements, questions, column=column)
        for row in frame.to_dict("records"):
            assert f"{row['method']}{percent(row['jcr'])}" in page.body
        right: Any = stats.accuracy(judgements, questions, column=column)
        for row in right[right["kind"] == "method"].to_dict("records"):
            assert percent(row["accuracy"]) in page.body
    for baseline in ("random pick", "longest", "majority answer", "best constant slot, slot ", "best constant agent"):
        assert f"baseline: {baseline}" in page.body
    assert "naive picks the same candidate as dense in" in page.body
    flips: Any = stats.paired(judgements, questions)
    assert f"{int((~flips['agree'].astype(bool)).sum())} of {len(flips)} judgements." in page.body


def test_every_figure_of_the_brief_is_there(page: Parsed) -> None:
    labels = [a.get("aria-label") for _, a in page.elements if a.get("role") == "img"]
    for label in (
        *("JCR by method, raw choices", "JCR by method, calibrated choices", "JCR by rung"),
        *("Share of picks by slot and method", "Where picks move from dense to naive"),
        *("Slot mass by layer and head", "Change of slot mass by layer and head", "Change of slot mass by slot"),
        *("Slot mass by slot, share of the row", "Slot mass by slot, share of the row, sinks taken out"),
        *("Slot mass by layer", "Slot mass by layer, sinks taken out"),
        "JCR by distance of the display order from the candidates' own",
    ):
        assert label in labels
    assert len(page.figures()) == len(labels)
    sections = {a.get("id") for element, a in page.elements if element == "section"}
    linked = {str(a.get("href"))[1:] for element, a in page.elements if element == "a"}
    assert sections | {"top"} <= linked
    heat = page.figures()[labels.index("Slot mass by layer and head")]
    assert len(heat["data"]) == 5 * 4  # methods x slots
    change = page.figures()[labels.index("Change of slot mass by layer and head")]
    assert len(change["data"]) == 4 * 4


def assert_self_contained(page: Parsed) -> None:
    for element, attributes in page.elements:
        assert element not in ("link", "iframe", "img", "object", "embed", "base", "form"), element
        assert "src" not in attributes
        assert "srcset" not in attributes
        assert str(attributes.get("href", "#")).startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    for style in page.styles:
        assert "url(" not in style
        assert "@import" not in style
    executed = [s for kind, s in page.scripts if kind is None]
    assert len(executed) == 2
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in executed}
    assert set(re.findall(r"'sha256-[^']+'", policy)) == hashes
    assert policy.startswith("default-src 'none';")


def test_the_page_needs_no_network(page: Parsed) -> None:
    assert_self_contained(page)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = write_fake_run(tmp_path / "hostile", replace(SMALL, hostile=True))
    page = report(hostile)
    assert_self_contained(page)
    for wanted in (HOSTILE[0], HOSTILE[1], HOSTILE[3][:40]):
        assert wanted in page.body
    assert "\u202e" not in page.body
    assert "\x1b" not in page.body


def test_strings_are_escaped_and_figures_cannot_close_their_script() -> None:
    assert text("<b>&\u202e") == "<bdi>&lt;b&gt;&amp;·</bdi>"
    assert pieces.element("p", "<b>", text("<i>"), id='"<') == '<p id="&#34;&lt;">&lt;b&gt;<bdi>&lt;i&gt;</bdi></p>'
    assert paragraph("a", text("b"), "<") == "<p>a<bdi>b</bdi>&lt;</p>"
    assert macros().facts({"<": "<"}) == "<dl><dt>&lt;</dt><dd>&lt;</dd></dl>"
    page = Page("<title>")
    page.figure(go.Figure(go.Scatter(text=["</script><!--"])), "label")
    (_, inner), whole = page.figures[0], page.render(text("lead"))
    assert "<" not in inner
    assert inner in whole
    assert "<title>&lt;title&gt;</title>" in whole
    assert json.loads(inner)["data"][0]["text"] == ["</script><!--"]


def test_the_page_of_a_demo_run_is_small(tmp_path: Path) -> None:
    path = write_report(write_fake_run(tmp_path / "demo", Fake(questions=4)), tmp_path / "elsewhere" / "page.html")
    assert path == tmp_path / "elsewhere" / "page.html"
    assert path.stat().st_size < 8_000_000
    assert not (tmp_path / "demo" / "report.html").exists()


@contextmanager
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("kaleido", reason="kaleido is not installed, which finds the browser")
    path = export.find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine")
    flags = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync"]
    with sync.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=[f"--{f}" for f in flags])
        yield chromium
        chromium.close()


def test_a_browser_opens_it_without_errors_or_requests(tmp_path: Path) -> None:
    path = write_report(write_fake_run(tmp_path / "run", replace(SMALL, hostile=True)))
    with browser() as chromium:
        for scheme, ink in (("light", "rgb(28, 33, 41)"), ("dark", "rgb(230, 233, 239)")):
            window = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            window.on("console", lambda m, said=said: said.append(m.text))
            window.on("pageerror", lambda e, said=said: said.append(str(e)))
            window.on("request", lambda r, asked=asked: asked.append(r.url))
            window.goto(path.as_uri())
            window.wait_for_function("document.body.dataset.drawn !== undefined")
            window.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            assert said == []
            assert [u for u in asked if not u.startswith(("data:", "blob:"))] == [path.as_uri()]
            assert window.title().endswith("does reusing KV caches change its decisions?")
            drawn = window.evaluate(
                "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg').length)"
            )
            assert len(drawn) > 10
            assert min(drawn) > 0
            assert window.evaluate("getComputedStyle(document.body).color") == ink
            assert window.evaluate("document.documentElement.scrollWidth") <= 1280
            window.close()


def without(fake: Fake, **changes: Any) -> list[tuple[dict[str, Any], list[Any]]]:
    return [(row, [replace(d, **changes) for d in decisions]) for row, decisions in fake.units()]


def write_units(folder: Path, units: list[tuple[dict[str, Any], list[Any]]], fake: Fake = SMALL) -> Path:
    with RunWriter(folder, fake.manifest()) as writer:
        for row, decisions in units:
            writer.write_unit(row["question_id"], row, decisions)
    return folder


def test_a_run_without_extras_says_what_is_missing(tmp_path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("correct", "calibrated", "choice_calibrated", "slot_calibrated"))
    units = without(SMALL, **nothing, correct_calibrated=None, mass=None)
    unknown = [({**row, "corrects": [None] * 4}, decisions) for row, decisions in units]
    page = report(write_units(tmp_path / "bare", unknown))
    assert "No content test was made: the run had no held-out questions." in page.body
    assert "It is not known which candidates are right" in page.body
    assert "No decision rows were captured." in page.body
    assert "calibrated choices" not in page.body


@pytest.mark.parametrize(
    "fake",
    [
        replace(SMALL, methods=("dense",)),
        replace(SMALL, questions=1, orders=1),
        replace(SMALL, candidates=1, orders=1),
        replace(SMALL, candidates=2, orders=2, methods=("dense", "somebody-elses(x=1)")),
        replace(SMALL, questions=2, candidates=10, orders=2, methods=("dense", "naive")),
        replace(SMALL, calibrated=False),
    ],
    ids=["dense alone", "one judgement", "one candidate", "two candidates", "ten candidates", "uncalibrated"],
)
def test_small_and_odd_runs_have_reports_too(tmp_path: Path, fake: Fake) -> None:
    page = report(write_fake_run(tmp_path / "run", fake, content_test=None))
    assert_self_contained(page)
    assert "nan" not in page.body.lower().replace("nanosecond", "").split()
    assert "Cannot be shown" not in page.body


def test_labels_that_get_little_probability_and_locked_slots_are_flagged(tmp_path: Path) -> None:
    units = [
        (row, [replace(d, coverage=0.2 if d.method == "naive" else 0.9, notes=("pr-teacher-forced",)) for d in ds])
        for row, ds in SMALL.units()
    ]
    folder = write_units(tmp_path / "run", units)
    page = report(folder)
    assert "In 100% of the judgements of naive less than half of the probability falls on the labels." in page.body
    picks: Any = Run(folder).judgements()
    lock = picks[picks["method"] == "foreign-kv"]["slot"].value_counts(normalize=True)
    assert ("foreign-kv (slot 1:" in page.body) == (lock.iloc[0] > 0.8)
    assert "pr-teacher-forced" in page.body


def test_changes_are_those_of_paired_judgements(folder: Path) -> None:
    facts = Facts(Run(folder))
    got = facts.changes(("method",)).set_index(["method", "slot"])["value"]
    pairs: list[Any] = [
        (d.mass, next(o.mass for o in decisions if o.method == "dense" and o.order == d.order))
        for _, decisions in SMALL.units()
        for d in decisions
        if d.method == "naive"
    ]
    for slot in (1, 4):
        own, base = (np.mean([pair[i].mass[..., 3 * slot] for pair in pairs]) for i in (0, 1))
        assert pairs[0][0].names[3 * slot] == f"candidate:{slot}"
        assert got.loc["naive", slot] == pytest.approx(np.log(own / base), abs=1e-5)


def test_runs_that_cannot_be_reported_are_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    RunWriter(tmp_path / "empty", SMALL.manifest()).close()
    only_naive = [(row, [d for d in ds if d.method == "naive"]) for row, ds in SMALL.units()]
    for path, reason in (
        (tmp_path / "empty", "has no finished question yet"),
        (write_units(tmp_path / "blind", only_naive), "has no dense judgements"),
        (tmp_path, r"no manifest\.json"),
    ):
        with pytest.raises(KvattnError, match=reason) as error:
            write_report(path)
        assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(KvattnError, match="cannot be written"):
        write_report(folder, tmp_path / "file" / "report.html")


def test_a_damaged_part_is_named_instead_of_reported(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", replace(SMALL, questions=2))
    victim = next((folder / "judgements").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(KvattnError, match=victim.name):
        write_report(folder)


def test_heads_that_changed_are_counted_from_the_masses(tmp_path: Path) -> None:
    folder = write_fake_run(
        tmp_path / "run", Fake(questions=14, orders=2, layers=4, heads=3, methods=("dense", "naive"))
    )
    run = Run(folder)
    judged = run.judgements().query("method == 'dense'")
    keys = [(q, tuple(o)) for q, o in zip(judged["question_id"], judged["order"], strict=True)]
    found = {m: [run.slot_mass(q, o, m) for q, o in keys] for m in ("dense", "naive")}
    mass = {m: np.stack([x.mass[..., x.names.index("candidate:4")] for x in rows if x]) for m, rows in found.items()}
    ids = [q for q, _ in keys]
    own, dense, logs = (
        np.stack([x[np.array(ids) == i].mean(0) for i in dict.fromkeys(ids)])
        for x in (mass["naive"], mass["dense"], np.log(mass["naive"] / mass["dense"]))
    )
    theirs = stats.mass_change(logs, own, dense, len(ids))
    ours = head_change(run, "last_prompt", "naive", 4)
    assert ours is not None
    np.testing.assert_allclose(ours.change, theirs.change, rtol=1e-4)
    np.testing.assert_allclose(ours.p, theirs.p, atol=0.01)
    assert (ours.pairs, ours.questions) == (28, 14)
    down = int(((ours.p < 0.05) & (ours.change < 0)).sum())
    assert down > 0
    page = write_report(folder).read_text()
    row = page[page.index("Heads that changed") :]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[: row.index("</table>")])
    assert cells[9 * 3 + 1 : 9 * 3 + 5] == ["4", str(down), str(int(((ours.p < 0.05) & (ours.change > 0)).sum())), "12"]
    assert head_change(run, "last_prompt", "naive", 9) is None


def test_consistency_is_shown_by_agreement_of_the_candidates(tmp_path: Path) -> None:
    fake = Fake(questions=10, orders=2, layers=2, heads=2, methods=("dense", "naive"))
    folder = tmp_path / "run"
    with RunWriter(folder, fake.manifest()) as writer:
        for i, (row, decisions) in enumerate(fake.units()):
            texts = [f"The answer is {k // (1 + i % 2)}" + "." * (k % 2) for k in range(4)]
            writer.write_unit(row["question_id"], {**row, "texts": texts}, decisions)
    page = write_report(folder).read_text()
    table = stats.by_candidate_agreement(Run(folder).judgements(), Run(folder).questions())
    assert set(table["agreeing"]) == {1, 2}
    for r in table.to_dict("records"):
        assert f"{r['agreeing']} of 4" in page
    assert "JCR by agreement of the candidates" in page


@pytest.mark.parametrize("unknown", [SMALL.methods, ("naive",)], ids=["all", "one"])
def test_unknown_label_coverage_is_no_good_news(tmp_path: Path, unknown: tuple[str, ...]) -> None:
    """A written verdict may have no probabilities on labels: nothing is said of it, and what is known counts."""
    written = {"readout": "generate", "coverage": float("nan")}
    units = [
        (row, [replace(d, **(written if d.method in unknown else {"coverage": 0.3})) for d in ds])
        for row, ds in SMALL.units()
    ]
    found = [f for f in findings(Run(write_units(tmp_path / "run", units))) if f.topic == "label coverage"]
    assert [f.level for f in found] == ([] if unknown == SMALL.methods else ["warn"])
    assert "nan" not in " ".join(f.sentence for f in found)
    assert "nan" not in report(tmp_path / "run").body.lower().split()
