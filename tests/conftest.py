"""What every test may use, and the switch that keeps the tests off the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when huggingface_hub is imported, so it has to stand before anything imports it.
os.environ["HF_HUB_OFFLINE"] = "1"

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power: what is written need not reach the disk before the test goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public benchmark data beside the checkout; a test that needs it is skipped where there is none."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout, so no benchmark data to test with")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of the embedded judge, which loads like its name; it stays in the user's cache for the next run."""
    from kvattn.models.source import prepare

    return str(prepare("smollm2-135m").folder)
