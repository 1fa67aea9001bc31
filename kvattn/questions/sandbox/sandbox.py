"""Python source run where it can do no harm: a process of its own, with limits, without network, files or company.

What the kernel cannot keep the code from is never passed over in silence: an `Outcome` names the protections that were
active, and code is not run where a required isolation is missing. No sandbox in one kernel is perfect; code from a
source you do not trust at all belongs on a machine you can lose.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kvattn.errors import KvattnError

Isolation = Literal["network", "files", "processes", "signals", "reads"]
REQUIRED: frozenset[Isolation] = frozenset({"network", "files", "processes", "signals"})
SCRIPT = Path(__file__).with_name("jail") / "main.py"
REFUSED = 3  # exit status of a jail that lacks a required isolation


@dataclass(frozen=True)
class Limits:
    """What one process may use. Times in seconds; `output_bytes` are kept of each of stdout and stderr, the rest is
    dropped; `scratch_bytes` bounds the scratch folder where the kernel gives it a file system of its own."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    scratch_bytes: int = 16 << 20
    open_files: int = 64
    output_bytes: int = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    ended:       "exited" by itself, "killed" by a signal (a limit, a crash), or "timeout"
    code:        exit status; None unless it exited by itself
    protections: mechanisms that were active, such as "seccomp" or "landlock-7"
    isolated:    what the code was kept from: see `kvattn.questions.sandbox.jail.kernel.isolated`
    """

    ended: Literal["exited", "killed", "timeout"]
    code: int | None
    stdout: str
    stderr: str
    truncated: bool
    seconds: float
    protections: tuple[str, ...]
    isolated: frozenset[str]

    @property
    def ok(self) -> bool:
        """Whether it exited by itself with status 0."""
        return self.ended == "exited" and self.code == 0


class Jailed:
    """A sandboxed process and what it has written so far. Leaving the context kills its whole process group and
    removes its scratch folder."""

    def __init__(
        self,
        task: Mapping[str, Any],
        limits: Limits,
        require: Iterable[Isolation],
        channels: Iterable[int] = (),
        keep: Iterable[int] = (),
    ) -> None:
        """`channels` are file descriptors the process is given; `keep` are reading ends kept here."""
        self.limits, self.require = limits, frozenset(require)
        self.exited, self.truncated, self.began, self.seconds = False, False, time.monotonic(), 0.0
        self.scratch = tempfile.mkdtemp(prefix="kvattn-sandbox-")
        status, said = os.pipe()
        task = {
            **task,
            "limits": {k: int(v) for k, v in asdict(limits).items()},
            "require": sorted(self.require),
            "parent": os.getpid(),
            "status": said,
        }
        try:
            with tempfile.TemporaryFile() as stdin:
                stdin.write(json.dumps(task).encode())
                stdin.seek(0)
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(SCRIPT)],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=self.scratch,
                    env={"HOME": self.scratch, "TMPDIR": self.scratch},
                    pass_fds=(said, *channels),
                    start_new_session=True,
                )
        except BaseException as e:
            os.close(status)
            empty(self.scratch)
            if isinstance(e, OSError):
                raise KvattnError(f"cannot start a sandboxed process: {e.strerror or e}") from None
            raise
        finally:
            os.close(said)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.status, self.out, self.err = status, self.process.stdout.fileno(), self.process.stderr.fileno()
        self.kept = {fd: bytearray() for fd in (status, self.out, self.err, *keep)}
        self.open = set(self.kept)
        for fd in self.kept:
            os.set_blocking(fd, False)

    def __enter__(self) -> Jailed:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self.status)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        empty(self.scratch)

    def read(self, fd: int) -> None:
        """Takes what there is to read; beyond `output_bytes` it is dropped."""
        for _ in range(16):  # a flood must not keep the watch from looking at the clock
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self.open.discard(fd)
                return
            room = self.limits.output_bytes - len(self.kept[fd])
            self.truncated |= len(data) > room
            self.kept[fd] += data[: max(room, 0)]

    def poll(self) -> None:
        """Notes whether the process has ended, without reaping it: its group id stays its own until it is killed."""
        if not self.exited:
            found = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                self.exited, self.seconds = True, time.monotonic() - self.began

    def kill(self) -> None:
        """Kills whatever is left of the process group, and reaps the process."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # not a session of its own yet, or all ended
                self.process.kill()
            self.process.wait()

    def outcome(self) -> Outcome:
        """How it ended; kills it if it has not. Raises KvattnError where it refused to run."""
        timeout = not self.exited
        self.seconds = self.seconds or time.monotonic() - self.began
        self.kill()
        for fd in tuple(self.open):
            self.read(fd)
        code = self.process.returncode
        said = self._said()
        missing = self.require - set(said["isolated"])
        if said["protections"] and missing:
            raise KvattnError(
                f"the sandbox cannot isolate {', '.join(sorted(missing))} on this machine, so nothing was run; use "
                "Linux 5.13 or newer with seccomp, or require less (require=...)"
            )
        if not said["protections"] and not timeout:
            tail = self.kept[self.err].decode(errors="replace").strip().splitlines()[-1:]
            raise KvattnError(f"the sandbox did not start, so nothing was run: {tail[0] if tail else f'status {code}'}")
        return Outcome(
            ended="timeout" if timeout else "exited" if code >= 0 else "killed",
            code=code if code >= 0 and not timeout else None,
            stdout=self.kept[self.out].decode(errors="replace"),
            stderr=self.kept[self.err].decode(errors="replace"),
            truncated=self.truncated,
            seconds=self.seconds,
            protections=tuple(said["protections"]),
            isolated=frozenset(said["isolated"]),
        )

    def _said(self) -> dict[str, list[str]]:
        try:
            return json.loads(self.kept[self.status])
        except ValueError:
            return {"protections": [], "isolated": []}


def watch(jailed: list[Jailed], wall_s: float, done: Callable[[], bool]) -> None:
    """Reads what the processes write until `done()` or until the wall-clock limit, from now, has passed."""
    deadline = time.monotonic() + wall_s
    with selectors.DefaultSelector() as selector:
        for j in jailed:
            for fd in j.open:
                selector.register(fd, selectors.EVENT_READ, j)
        while True:
            for j in jailed:
                j.poll()
            left = deadline - time.monotonic()
            if done() or left <= 0:
                return
            for key, _ in selector.select(min(left, 0.02)):
                key.data.read(key.fd)
                if key.fd not in key.data.open:
                    selector.unregister(key.fd)


def empty(folder: str) -> None:
    """Removes a folder and all in it. However deep it is, no path longer than one step is followed: what lies in a
    folder inside is moved up before that is removed; links are removed, not followed."""
    moved = 0
    while True:
        with os.scandir(folder) as entries:
            inside = list(entries)
        if not inside:
            break
        for entry in inside:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for name in os.listdir(entry.path):
                moved += 1
                os.rename(os.path.join(entry.path, name), os.path.join(folder, f"{os.path.basename(folder)}.{moved}"))
            os.rmdir(entry.path)
    os.rmdir(folder)
