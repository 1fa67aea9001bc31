"""`kvattn app`: starts the Streamlit app on this machine, for the folders it is given."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from kvattn.errors import KvattnError

ENVIRONMENT = "KVATTN_APP"
# Options of Streamlit, in an order of their own: nobody but this machine is served, nothing is reported to anybody.
OPTIONS = {
    "server.address": "localhost",
    "server.headless": "true",  # else it asks for a mail address and advertises; the browser is opened below
    "server.enableStaticServing": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "20",
    "browser.serverAddress": "localhost",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",  # they would carry the error to another machine
    "theme.light.primaryColor": "#0072B2",
    "theme.dark.primaryColor": "#1b75b3",
}


def entry() -> Path:
    """The app's script: in the wheel beside this file, in a checkout at its top."""
    here = Path(__file__).resolve().parent.parent
    for path in (here / "_app" / "main.py", here.parent / "app" / "main.py"):
        if path.is_file():
            return path
    raise KvattnError("the app is not part of this installation; install kvattn from its wheel or a checkout")


def command(port: int) -> list[str]:
    """What starts the server."""
    listed = [f"--{name}={value}" for name, value in {**OPTIONS, "server.port": str(port)}.items()]
    # -P: a file of the folder that one happens to be in, e.g. click.py, must not stand in for a library.
    return [sys.executable, "-P", "-m", "streamlit", "run", str(entry()), *listed]


def environment(
    folders: Sequence[Path], models: Sequence[str], dtype: str = "float32", device: str = "cpu"
) -> dict[str, str]:
    """The environment of the server: which folders it may read, which models it may judge with, and how those load."""
    given = {"folders": [str(f.resolve()) for f in folders], "models": list(models), "dtype": dtype, "device": device}
    return {**os.environ, ENVIRONMENT: json.dumps(given), "TOKENIZERS_PARALLELISM": "false"}


def serve(
    folders: Sequence[Path],
    models: Sequence[str] = (),
    port: int | None = None,
    browser: bool = True,
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    """Runs the app until it is interrupted. Raises KvattnError without Streamlit, for a missing folder, and for a model
    that there is not."""
    from kvattn.models import resolve

    if importlib.util.find_spec("streamlit") is None:
        raise KvattnError('streamlit is not installed; pip install "kvattn[app]"')
    for folder in folders:
        if not folder.is_dir():
            raise KvattnError(f"there is no folder {folder}; kvattn judge FILE --run {folder} makes a run")
    for model in models:
        resolve(model)
    port = port or _free_port()
    if browser:
        threading.Thread(target=_open_when_up, args=(f"http://localhost:{port}",), daemon=True).start()
    with subprocess.Popen(command(port), env=environment(folders, models, dtype, device)) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        status = server.wait()
    if status not in (0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise KvattnError(f"the app's server ended with status {status}; is its port taken? choose one: --port")


def _free_port(first: int = 8501) -> int:
    """The first port from Streamlit's own on that nobody listens at."""
    for port in range(first, first + 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("localhost", port))
            return port
    raise KvattnError(f"ports {first} to {first + 99} are taken; choose one: --port")


def _open_when_up(url: str) -> None:
    """Opens the page in the user's browser as soon as the server answers."""
    for _ in range(240):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
            webbrowser.open(url)
            return
        time.sleep(0.25)
