"""SIGINT and SIGTERM: one line that says what is kept, and the exit status that shells give them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
GOES_ON = "what was finished is kept, the same command goes on from there"


class Stopped(BaseException):
    """A signal came: what is being written is undone on the way out, as for any other error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number, self.kept = number, ""

    def __str__(self) -> str:
        return "; ".join(x for x in (WORDS[signal.Signals(self.number)], self.kept) if x)


@contextmanager
def heard() -> Iterator[None]:
    """Within the block both signals raise Stopped."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in WORDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping(what: str | Callable[[], str] = GOES_ON) -> Iterator[None]:
    """Where a signal ends the block, the line says what is kept."""
    try:
        yield
    except Stopped as stopped:
        stopped.kept = stopped.kept or (what if isinstance(what, str) else what())
        raise
