"""How long one waits before anything happens: `kvattn --help`, a judge from prepared weights, the app's first page.

    python -m benchmarks.start [--tiny]

Every start is a fresh process, files in the page cache; an interpreter that does nothing stands beside them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from statistics import median

from benchmarks import kit

LOAD = "from kvattn.judge.judge import load; load('smollm2-135m')"
STARTS = {
    "python -c pass": ["-c", "pass"],
    "kvattn --help": ["-m", "kvattn", "--help"],
    "kvattn study --help": ["-m", "kvattn", "study", "--help"],
    "import torch, transformers": ["-c", "import torch, transformers"],
    "import kvattn": ["-c", "import kvattn"],
    "a judge from prepared weights": ["-c", LOAD],
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def start(arguments: list[str]) -> None:
    """One process, from its start to its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def app() -> tuple[float, float | None]:
    """Seconds until the server answers and, where there is a browser to ask, until the first page has its heading."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    url = f"http://localhost:{port}"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "kvattn", "app", folder, "--port", str(port), "--no-browser"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]
        try:
            while not _answers(url):
                time.sleep(0.02)
            up = time.perf_counter() - began
            return up, _painted(url, up)
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5) as answer:
            return answer.read() == b"ok"
    except (urllib.error.URLError, OSError):
        return False


def _painted(url: str, up: float) -> float | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if CHROMIUM is None:
        return None
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        opened = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("h2")
        return up + time.perf_counter() - opened


def main() -> None:
    """One table."""
    args = kit.arguments(__doc__)
    report = kit.Report("start", __doc__, args.out)
    times = kit.alternate({name: lambda a=a: start(a) for name, a in STARTS.items()}, args.turns)
    rows = [[name, f"{median(t):.2f}", f"{min(t):.2f} to {max(t):.2f}"] for name, t in times.items()]
    seen = [app() for _ in range(1 if args.tiny else 5)]
    for i, name in enumerate(("kvattn app, server answers", "kvattn app, first page (browser's own start apart)")):
        each = [x[i] for x in seen if x[i] is not None]
        spread = (
            [f"{median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}"]
            if each
            else ["not measured: no Chromium", ""]
        )
        rows.append([name, *spread])
    report.table(
        f"{len(next(iter(times.values())))} starts each, the app {len(seen)}",
        ["what", "seconds (median)", "range"],
        rows,
        times,
    )


if __name__ == "__main__":
    main()
