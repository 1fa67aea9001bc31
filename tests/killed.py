"""A server of `kvattn` processes that can be killed: it has imported everything, so that twenty of them start at once.

A line on standard input, the arguments as JSON, forks a process that runs them as the command `kvattn`; the server
answers with its process id, and with its exit status when it has ended (negative: the signal that ended it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CODE = """
import json, os, sys
import torch, pandas, pyarrow.parquet, safetensors.torch, transformers
import transformers.models.llama.modeling_llama
import kvattn.study.grid, kvattn.report, kvattn.stats
from kvattn import methods
from kvattn.cli.main import main
methods.registry()
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["kvattn", *json.loads(line)]
        try:
            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """A context manager; one command at a time."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / "commands.log"
        self._server = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, **environment},
            text=True,
        )
        assert self._line() == "ready"

    def start(self, arguments: Sequence[str]) -> int:
        """Begins a command; its process id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(list(arguments)) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The exit status of the command that was begun last."""
        return int(self._line())

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
