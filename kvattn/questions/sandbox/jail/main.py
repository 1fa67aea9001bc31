"""The sandboxed process: reads what to do, gives up every right it can, says which, and only then runs the code.

Run as a script by `kvattn.questions.sandbox.sandbox`, with `python -I -S`; standard input is a JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from types import ModuleType


def sibling(name: str) -> ModuleType:
    """A module of this folder, which is not on the path."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Never returns: ends the process with 0, with 1 after an error in the code, with 3 for want of protection."""
    task = json.load(sys.stdin)
    roles, kernel = sibling("roles"), sibling("kernel")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    protections = kernel.confine(task["limits"], os.getcwd(), task["parent"], sibling("seccomp"))
    isolated = kernel.isolated(protections)
    os.write(task["status"], json.dumps({"protections": protections, "isolated": isolated}).encode())
    os.close(task["status"])
    if not set(task["require"]) <= set(isolated):
        os._exit(3)
    roles.ROLES[task["role"]](task)


if __name__ == "__main__":
    main()
