"""`kvattn app` as somebody starts it who never used Streamlit: nothing is asked, the page comes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


@pytest.mark.parametrize("wanted", [[], ["--no-browser"]], ids=["browser", "no-browser"])
def test_a_first_start_asks_nothing(tmp_path: Path, wanted: list[str]) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    opened = tmp_path / "browser"
    command = [sys.executable, "-m", "kvattn", "app", str(tmp_path), "--port", str(port), *wanted]
    env = {**os.environ, "HOME": str(tmp_path), "BROWSER": f"{opened} %s", "KVATTN_CACHE": str(tmp_path / "cache")}
    opened.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/address\n')
    opened.chmod(0o755)
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
                    assert answer.read() == b"ok"
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        else:
            raise AssertionError(log.read_text())
        for _ in range(40 * (not wanted)):
            if (tmp_path / "address").exists() and (tmp_path / "address").read_text():
                break
            time.sleep(0.25)
        process.terminate()  # as `kill` or a service manager does: the server must not outlive the command
        assert process.wait(20) == 0, log.read_text()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://localhost:{port}/", timeout=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    said = log.read_text()
    assert "mail" not in said
    assert "Help" not in said
    address = tmp_path / "address"
    assert (address.read_text() if address.exists() else "") == ("" if wanted else f"http://localhost:{port}\n")
