"""An entry of a study's `data`: where its questions come from, and who answers them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kvattn.errors import KvattnError, unknown
from kvattn.questions import Problem, load_problems, mixed_only
from kvattn.questions import load as load_data
from kvattn.questions.orders import assign

Files = Mapping[str, str]  # names of sources that are read from files instead


@dataclass(frozen=True)
class Source:
    """Questions of a cell: a candidates file or embedded set, how many are judged, how many are held out.

    mixed:  only questions with right and wrong candidates
    assign: candidates are assigned to slots by seeded Latin squares ("latin"), or stand as the source has them ("file")
    agents: that many execution agents of the judge's model answer the source's problems, in each regime; 0: the source
            has candidates
    temperature, max_new, verify: of the agents (`kvattn.judge.agents`)
    """

    source: str
    limit: int | None = None
    heldout: int = 0
    mixed: bool = False
    assign: Literal["file", "latin"] = "file"
    name: str = ""
    agents: int = 0
    temperature: float = 0.2
    max_new: int = 512
    verify: bool = True

    @property
    def wanted(self) -> int | None:
        """Questions judged and held out; None: all there are."""
        return None if self.limit is None else self.limit + self.heldout

    def problems(self, seed: int, files: Files) -> list[Problem]:
        """What the agents answer."""
        return load_problems(files.get(self.source, self.source), self.wanted, seed)

    def split(self, seed: int, files: Files, made: Path | None = None) -> tuple[list, list]:
        """(judged, held out); the held-out ones come after the judged ones. `made`: the file of the agents' answers."""
        wanted = self.wanted
        prompts = load_data(made or files.get(self.source, self.source), None if self.mixed else wanted, seed)
        if self.mixed:
            prompts = mixed_only(prompts)[:wanted]
        if self.assign == "latin":
            prompts = assign(prompts, seed)
        if wanted is not None and len(prompts) < wanted:
            raise KvattnError(f"{self.source} has {len(prompts)} fitting questions, {wanted} are asked for")
        cut = len(prompts) - self.heldout
        if cut < 1:
            raise KvattnError(f"{self.source}: {len(prompts)} questions cannot spare {self.heldout} held-out ones")
        return prompts[:cut], prompts[cut:]


def short(value: Any) -> str:
    """A value of a YAML file in an error message; cut, since aliases make a short file a value of any size."""
    cut = reprlib.Repr()
    cut.maxlevel = 2
    return cut.repr(value)


def read_source(said: Any, where: str) -> Source:
    """A source as a study file says it: a name or path, or a mapping. Raises KvattnError naming what is wrong."""
    if isinstance(said, str):
        return Source(said)
    if not isinstance(said, dict) or not isinstance(said.get("source"), str):
        raise KvattnError(f"{where}: an entry of 'data' is a name or path, or a mapping with the key 'source'")
    known = {f.name for f in fields(Source)}
    for key in said:
        if key not in known:
            raise unknown(f"key in an entry of 'data' in {where}", str(key), known)
    if not isinstance(said.get("name", ""), str):
        raise KvattnError(f"{where}: 'name' is text, not {short(said['name'])}")
    for key in ("limit", "heldout"):
        value = said.get(key, 0)
        if not (value is None and key == "limit") and (type(value) is not int or value < 0):
            raise KvattnError(f"{where}: {key!r} counts questions, not {short(said[key])}")
    for key, kind, least in (("agents", int, 0), ("max_new", int, 1), ("temperature", (int, float), 0)):
        value = said.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
            raise KvattnError(f"{where}: {key!r} is a number of {least} or more, not {short(value)}")
    for key in ("verify", "mixed"):
        if not isinstance(said.get(key, True), bool):
            raise KvattnError(f"{where}: {key!r} is true or false, not {short(said[key])}")
    for key in ("temperature", "max_new", "verify"):
        if key in said and not said.get("agents"):
            raise KvattnError(f"{where}: {key!r} is for agents; say how many with the key 'agents'")
    if said.get("agents") and said.get("mixed"):
        raise KvattnError(
            f"{where}: which of the agents' questions are mixed is known when they are made: generate the file first "
            "(kvattn candidates generate), then name it as the source"
        )
    if said.get("assign", "file") not in ("file", "latin"):
        raise KvattnError(f"{where}: 'assign' is file or latin, not {short(said['assign'])}")
    return Source(**said)
