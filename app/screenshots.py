"""Pictures of every page of the app: `python app/screenshots.py OUT [RUN ...]`.

Needs a prepared model, playwright, and a Chromium. The runs are the committed ones where none is given; the picture of
the gate is of a run that `kvattn gate report` was used on.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNS = Path(__file__).resolve().parent.parent / "figures" / "runs"
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
WIDTH, HEIGHT = 1280, 1000
LIVE = "live?model=smollm2-135m-judge&source=odd-one-out&number=0&judged=1"
ROW = "The decision row over the prompt"
HEAD = "heatmaps?run={run}&method=naive&base=dense&slot=all&layer=17&head=0"
PATIENCE = 300_000  # milliseconds for a page on a busy machine
# Nothing runs, all is drawn, and that for a second.
SETTLED = """() => {
  const now = performance.now(), all = what => [...document.querySelectorAll(`[data-testid=${what}]`)];
  const idle = all("stApp")[0]?.dataset.testScriptState === "notRunning" && !all("stSkeleton").length
    && all("stPlotlyChart").every(f => f.querySelector(".main-svg"))
    && all("stDataFrame").every(t => !t.checkVisibility() || t.querySelector("canvas")?.offsetWidth > 100);
  window.idleSince = idle ? window.idleSince ?? now : undefined;
  return idle && now - window.idleSince > 1000;
}"""
# The page, the colours, and the heading that is scrolled to the top of the window. {run} has decision rows, {picks} a
# judge that reads its candidates.
PAGES = {
    "live": (LIVE, "light", None),
    "live-decisions": (LIVE, "light", "Decisions"),
    "live-row": (f"{LIVE}&row-method=naive-linked", "dark", ROW),
    "live-play": (f"{LIVE}&row-method=naive&drawn=play&row-layer=19&row-head=2", "dark", ROW),
    "live-layers": (f"{LIVE}&row-method=naive", "light", "In which layer"),
    "live-heads": (f"{LIVE}&row-method=naive&live-view=change", "light", "Slot mass by layer and head"),
    "live-blocks": (f"{LIVE}&row-method=true-mask&blocks=on", "dark", "Block matrix"),
    "heatmaps": (HEAD, "light", None),
    "head": (HEAD, "dark", r"Layer \d+, head \d+"),
    "dilution": ("dilution?run={run}", "light", None),
    "dilution-layers": ("dilution?run={run}&sinks=out", "dark", "By layer"),
    "shuffle": ("shuffle?run={picks}&flow=naive-linked", "dark", "Consistency by distance"),
    "flips": ("shuffle?run={picks}&flow=naive-linked", "light", "Where picks move"),
    "compare": ("compare", "light", None),
    "compare-slots": ("compare", "light", "Slot mass, model by model"),
    "compare-depth": ("compare?depth-method=naive", "dark", "Slot mass by relative depth"),
    "frontier": ("frontier?run={picks}", "light", None),
    "gate": ("frontier?run={picks}", "light", "Gate"),
    "overview": ("?run={run}", "light", None),
    "overview-dark": ("?run={run}", "dark", "Methods"),
    "runs": ("?run={run}", "light", "Runs"),
}


def main() -> None:
    """Starts the app, visits every page, saves OUT/NAME.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="*", default=[RUNS])
    parser.add_argument("--run", default="odd-one-out", help="the run that pages about attention show: with rows")
    parser.add_argument("--picks", default="gsm8k-1.5b", help="the run that pages about picks show")
    parser.add_argument("--only", nargs="*", choices=PAGES, default=list(PAGES))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with server(given.runs) as root, browser() as chromium:
        for name in given.only:
            path, scheme, heading = PAGES[name]
            url = f"{root}/{path.format(run=given.run, picks=given.picks)}"
            shoot(chromium, url, given.out / f"{name}.png", scheme, heading)
            print(given.out / f"{name}.png", flush=True)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        sys.exit("no Chromium on the PATH; install one, e.g. apt-get install chromium")
    with sync_playwright() as p:
        made = p.chromium.launch(executable_path=path, args=FLAGS.split())
        yield made
        made.close()


def few_colours(picture: Any) -> Any:
    """The picture in 256 colours, so that its file is small: the most frequent ones as they are, and a cover of all."""
    import numpy as np
    from PIL import Image

    frequent = sorted(picture.getcolors(picture.width * picture.height), reverse=True)[:160]
    cover = picture.quantize(256 - len(frequent), Image.Quantize.MAXCOVERAGE).getpalette()
    palette = np.array([*(c for _, c in frequent), *np.reshape(cover, (-1, 3))], dtype=np.int32)
    seen, where = np.unique(np.reshape(picture, (-1, 3)), axis=0, return_inverse=True)
    nearest = ((seen[:, None].astype(np.int32) - palette) ** 2).sum(2).argmin(1).astype(np.uint8)
    out = Image.fromarray(nearest[where.ravel()].reshape(picture.height, picture.width), "P")
    out.putpalette(palette.astype(np.uint8).ravel().tolist())
    return out


def shoot(chromium: Any, url: str, file: Path, scheme: str, heading: str | None) -> None:
    """A window of one page once it is drawn."""
    from PIL import Image

    page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector("h2", timeout=PATIENCE)
    page.wait_for_function(SETTLED, timeout=PATIENCE)
    if heading is not None:
        found = page.get_by_role("heading", name=re.compile(f"^{heading}$"))
        if not found.count():
            sys.exit(f"{url} shows no {heading!r}; is it the run for it (--run: with rows, --picks: one that reads)?")
        found.first.evaluate("e => e.scrollIntoView({block: 'start'})")
        page.wait_for_function(SETTLED, timeout=PATIENCE)  # what comes into sight is drawn now
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        few_colours(picture.convert("RGB")).save(file, optimize=True)
    page.close()


@contextmanager
def server(runs: list[Path]) -> Iterator[str]:
    """The address of the app over these folders."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "kvattn", "app", *map(str, runs), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(240):
            if process.poll() is not None:
                sys.exit("the app did not start")
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.25)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
