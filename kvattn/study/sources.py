"""An entry of a study's `data`: where its questions come from, and who answers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from kvattn.errors import KvattnError
from kvattn.questions import Problem, load_problems, mixed_only
from kvattn.questions import load as load_data
from kvattn.questions.orders import assign
from kvattn.questions.template_files import find_template
from kvattn.questions.validation import validated

Files = Mapping[str, str]  # names of sources that are read from files instead
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Source:
    """Questions of a cell: a candidates file or embedded set, how many are judged, how many are held out.

    mixed:  only questions with right and wrong candidates
    assign: candidates are assigned to slots by seeded Latin squares ("latin"), or stand as the source has them ("file")
    agents: that many execution agents of the judge's model answer the source's problems, in each regime; 0: the source
            has candidates
    template: the judge's prompt, a file or a name, in the place of what the source says
    temperature, max_new, verify: of the agents (`kvattn.judge.agents`)
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    source: Text
    limit: Count | None = None
    heldout: Count = 0
    mixed: Flag = False
    assign: Literal["file", "latin"] = "file"
    name: Text = ""
    agents: Count = 0
    temperature: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.2
    max_new: Annotated[int, Field(strict=True, ge=1)] = 512
    verify: Flag = True
    template: Text = ""

    @property
    def wanted(self) -> int | None:
        """Questions judged and held out; None: all there are."""
        return None if self.limit is None else self.limit + self.heldout

    def problems(self, seed: int, files: Files, unread: dict[str, str] | None = None) -> list[Problem]:
        """What the agents answer."""
        return load_problems(files.get(self.source, self.source), self.wanted, seed, unread)

    def split(
        self, seed: int, files: Files, made: Path | None = None, unread: dict[str, str] | None = None
    ) -> tuple[list, list]:
        """(judged, held out); the held-out ones come after the judged ones. `made`: the file of the agents' answers;
        `unread`: where it is given, what is wrong in a file is put there, beside what was left out before."""
        wanted = self.wanted
        template = find_template(self.template) if self.template else None
        found, most = made or files.get(self.source, self.source), None if self.mixed else wanted
        prompts = load_data(found, most, seed, unread, template)
        if self.mixed:
            prompts = mixed_only(prompts)[:wanted]
        if self.assign == "latin":
            prompts = assign(prompts, seed)
        if wanted is not None and len(prompts) + len(unread or ()) < wanted:
            raise KvattnError(f"{self.source} has {len(prompts)} fitting questions, {wanted} are asked for")
        cut = len(prompts) - self.heldout
        if cut < 1:
            raise KvattnError(f"{self.source}: {len(prompts)} questions cannot spare {self.heldout} held-out ones")
        return prompts[:cut], prompts[cut:]


def read_source(entry: Any, where: str) -> Source:
    """A source as a study file says it: a name or path, or a mapping. Raises KvattnError naming what is wrong."""
    if isinstance(entry, str):
        return Source(entry)
    where = f"an entry of 'data' in {where}"
    if not isinstance(entry, dict):
        raise KvattnError(f"{where} is a name or path, or a mapping with the key 'source'")
    source = validated(Source, entry, where)
    for key in ("temperature", "max_new", "verify"):
        if key in entry and not source.agents:
            raise KvattnError(f"{where}: {key!r} is for agents; say how many with the key 'agents'")
    if source.agents and source.template:
        raise KvattnError(f"{where}: 'template' is of questions that have candidates; problems say their own")
    if source.agents and source.mixed:
        raise KvattnError(
            f"{where}: which of the agents' questions are mixed is known when they are made: generate the file first "
            "(kvattn candidates generate), then name it as the source"
        )
    return source
