"""A grid of runs from one YAML file: models x data x regimes x orders x readouts, all methods in each.

Every cell is a run folder of its own under the grid's folder, so that cells can be stopped, continued, spread over
machines by shard, and merged.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from kvattn import DEFAULT_JUDGE
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.files import read_yaml, write_atomically
from kvattn.judge.agents import Agents
from kvattn.judge.judge import Judge
from kvattn.judge.judge import load as load_judge
from kvattn.questions.candidates import read_candidates
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.validation import short, validated
from kvattn.study import run_folder
from kvattn.study.candidates_file import Generation, left_out
from kvattn.study.run_folder.schema import TABLES, content_hash
from kvattn.study.sources import Count, Files, Flag, Source, Text, read_source
from kvattn.study.study import Executor, Local, Study
from kvattn.text import Progress, silent

MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    model: str
    data: Source
    regime: str
    orders: str
    readout: str

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return _name(self.model, self.data, self.regime, self.orders, self.readout)

    @property
    def candidates(self) -> Path:
        """The file of the agents' answers, in the grid's folder; shared by cells of other orders and readouts."""
        return Path("candidates") / f"{_name(self.model, self.data, self.regime)}.jsonl"

    @property
    def agents(self) -> Agents:
        """How they are made, but for the seed."""
        d = self.data
        return Agents(d.agents, self.regime, d.temperature, d.max_new)  # type: ignore[arg-type]


def _many(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _word(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _one_name(value: str) -> str:
    if value in ("", ".", "..") or re.search(r"[/\\\0]", value):
        raise ValueError(f"is the name of a folder under runs/, one name without / and \\, not {short(value)}")
    return value


Words = Annotated[tuple[Annotated[Text, BeforeValidator(_word)], ...], BeforeValidator(_many), Field(min_length=1)]


@dataclass(frozen=True)
class StudyFile:
    """What a study file says. Every key is optional but `data`."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    data: tuple[Source, ...]
    name: Annotated[Text, AfterValidator(_one_name)] = "study"
    models: Words = (DEFAULT_JUDGE,)
    regimes: Words = ("parallel",)
    orders: Words = ("fixed",)
    readouts: Words = ("label",)
    methods: Words = ("dense", "naive", "naive-linked")
    seed: Count = 0
    dtype: Text = "float32"
    device: Text = "cpu"
    device_map: Text | dict[Text, Text | int] | None = None
    capture: Flag = True


@dataclass(frozen=True)
class Grid(StudyFile):
    """A study file, and what it cannot say, which comes from the command line.

    shard: (k, n), judge every n-th question from the k-th; files: sources that are read from files instead;
    allow_code_execution: run agents' programs, in a sandbox, to see whether they are right
    skip_bad: leave out questions that cannot be read, answered or judged (`Study`)

    Raises KvattnError where a regime is not that under which a file says its candidates were made.
    executor: who judges (kvattn.study.ray)
    """

    shard: tuple[int, int] = (1, 1)
    files: Files = field(default_factory=dict)
    allow_code_execution: bool = False
    skip_bad: bool = False
    executor: Executor = field(default_factory=Local)
    _loaded: dict[tuple[str, str, str, str], Engine] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for d in self.data:
            path = Path(self.files.get(d.source, d.source))
            if not d.agents and path.is_file():
                for prompt in _of_each_regime(path, path.stat().st_mtime_ns, None if d.mixed else d.wanted):
                    for regime in self.regimes:
                        prompt.require_regime(regime)

    @staticmethod
    def read(path: str | Path) -> Grid:
        """The grid of a YAML file. Raises KvattnError naming what is wrong with it."""
        said = read_yaml(Path(path))
        if not isinstance(said, dict):
            raise KvattnError(f"{path}: a study file is a mapping with keys such as data, models, methods")
        return Grid.of(said, str(path))

    @staticmethod
    def of(entries: dict[str, Any], where: str = "study") -> Grid:
        """The grid of a mapping. A single value may stand where a list is meant."""
        if not entries.get("data"):
            raise KvattnError(f"{where}: the key 'data' says which questions are judged, and is missing")
        sources = tuple(read_source(x, where) for x in _many(entries["data"]))
        grid = Grid(**vars(validated(StudyFile, {**entries, "data": sources}, where)))
        cells = math.prod(map(len, (grid.models, grid.data, grid.regimes, grid.orders, grid.readouts)))
        if cells > MOST_CELLS:
            raise KvattnError(f"{where}: a grid of {cells} cells; {MOST_CELLS} are the most a study file may ask for")
        names = [c.folder for c in grid.cells()]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise KvattnError(f"{where}: two cells would share the folder {twice!r}; give the data sets names")
        return grid

    def cells(self) -> list[Cell]:
        """All cells; those of one model follow each other."""
        return [Cell(*x) for x in itertools.product(self.models, self.data, self.regimes, self.orders, self.readouts)]

    def studies(
        self, folder: str | Path, progress: Progress = silent, anew: bool = False
    ) -> Iterator[tuple[Cell, Study]]:
        """The study of every cell; a model is loaded once for all its cells. Agents' answers are made where they are
        not in the folder yet; with `anew` also where they were made otherwise."""
        for cell, judge in self._judges():
            made = None
            if cell.data.agents:
                made = self._asked(cell, judge).write(
                    Path(folder) / cell.candidates, progress, "other" if anew else "never"
                )
            yield cell, self._study(cell, judge, made)

    def _asked(self, cell: Cell, judge: Judge) -> Generation:
        """What a cell's agents answer."""
        unread = {} if self.skip_bad else None
        problems = cell.data.problems(self.seed, self.files, unread)
        agents = replace(cell.agents, seed=self.seed)
        how = (cell.data.source, cell.data.verify, self.allow_code_execution, self.skip_bad, unread or {})
        return Generation(judge.engine, problems, agents, *how).checked()

    def _judges(self) -> Iterator[tuple[Cell, Judge]]:
        from kvattn.judge import readout as readouts

        for model, cells in itertools.groupby(self.cells(), key=lambda c: c.model):
            how = (model, self.dtype, self.device, repr(self.device_map))
            if how not in self._loaded:
                self._loaded.clear()  # one at a time
                judge = load_judge(model, dtype=self.dtype, device=self.device, device_map=self.device_map)
                self._loaded[how] = judge.engine
            engine = self._loaded[how]
            for cell in cells:
                yield cell, Judge(engine, readouts.get(cell.readout), regime=cell.regime)  # type: ignore[arg-type]

    def _study(self, cell: Cell, judge: Judge, made: Path | None = None) -> Study:
        unread = dict(left_out(made)) if made else {}
        judged, held = cell.data.split(self.seed, self.files, made, unread if self.skip_bad else None)
        return self._over(cell, judge, judged, held, {"unread": unread} if unread else {})

    def _over(
        self, cell: Cell, judge: Judge, judged: Sequence[JudgePrompt], held: Sequence[JudgePrompt], extra: dict
    ) -> Study:
        part, parts = self.shard
        return Study(
            judge=judge,
            prompts=judged,
            methods=self.methods,
            orders=cell.orders,
            heldout=held,
            seed=self.seed,
            source=cell.data.source,
            capture=self.capture,
            mine=range(part - 1, len(judged), parts),
            skip_bad=self.skip_bad,
            extra=extra,
            executor=self.executor,
        )

    def run(self, folder: str | Path, progress: Progress = silent, anew: bool = False) -> list[Path]:
        """Judge what the folders of the cells do not hold yet, or all of them anew. Returns those folders.

        Before the first, the questions of all cells are held against their judges, and those that agents are still to
        answer against the agents. Raises KvattnError that names what cannot be judged or answered."""
        for cell, judge in self._judges():
            if cell.data.agents:
                self._asked(cell, judge)
            else:
                self._study(cell, judge).checked(progress)
        made = []
        for cell, study in self.studies(folder, progress, anew):
            made.append(study.run(Path(folder) / cell.folder, progress, anew))
        return made

    def status(self, folder: str | Path) -> list[dict[str, Any]]:
        """By cell: its folder, finished and wanted questions, how many were left out, and damaged parts."""
        out = []
        for cell in self.cells():
            path = Path(folder) / cell.folder
            wanted = self._wanted(cell)
            done, left, damaged = 0, [], []
            if (path / "manifest.json").exists():
                run = run_folder.Run(path)
                done, left, damaged = len(run), run_folder.left_out(run.manifest), run.check()
            of = len(wanted - set(left))
            out.append({"cell": cell.folder, "done": done, "of": of, "left out": len(left), "damaged": damaged})
        return out

    def _wanted(self, cell: Cell) -> set[str]:
        """The questions that a cell judges, but those that cannot be read; agents' answers need not exist yet."""
        if cell.data.agents:
            problems = cell.data.problems(self.seed, self.files, {})
            return {p.id for p in problems[: len(problems) - cell.data.heldout]}
        return {p.id for p in cell.data.split(self.seed, self.files, unread={})[0]}

    def estimate(self) -> list[dict[str, Any]]:
        """By cell, before anything is written: seconds, bytes on disk and peak memory, and once for each
        model the time to load it. Agents answer the first problem, and are taken to need as long for each of the
        others, once for all cells that share their answers."""
        from kvattn.study.estimate import of_study

        out, counted = [], set()
        began = time.perf_counter()
        for cell, judge in self._judges():
            beside = time.perf_counter() - began  # loading the model; next to nothing for its further cells
            if cell.data.agents:
                asked = self._asked(cell, judge)
                began = time.perf_counter()
                first = asked.agents.answer(judge.engine, asked.problems[:1])[0]
                if cell.candidates not in counted:
                    beside += (time.perf_counter() - began) * len(asked.problems)
                    counted.add(cell.candidates)
                prompts = [replace(first, id=p.id, question=p.question, answer=p.answer) for p in asked.problems]
                cut = len(prompts) - cell.data.heldout
                study = self._over(cell, judge, prompts[:cut], prompts[cut:], {"unread": dict(asked.left_out)})
            else:
                study = self._study(cell, judge)
            found = asdict(of_study(study))
            out.append({"cell": cell.folder, **found, "seconds": found["seconds"] + beside})
            began = time.perf_counter()
        return out


@lru_cache(maxsize=8)
def _of_each_regime(path: Path, changed: int, limit: int | None) -> list[JudgePrompt]:
    """The first question of every regime that a candidates file names; what cannot be read is refused or left out when
    its cell is made."""
    return list({p.regime: p for p in reversed(read_candidates(path, limit, unread={}))}.values())


def merge(folders: Sequence[str | Path], into: str | Path, rows: bool = True) -> Path:
    """One run folder out of shards of the same study, with their held-out questions. Raises KvattnError where their
    manifests differ in how questions were judged, where a question is in two of them, and for damaged parts.

    rows: False leaves out slot mass and its sums, most of a run's bytes, as if nothing had been captured
    """
    import pyarrow.parquet as pq

    runs = [run_folder.Run(f) for f in folders]
    if any(run.folder.resolve() == Path(into).resolve() for run in runs):
        raise KvattnError(f"{into} is one of the runs to be merged; name a new folder")
    seen: dict[str, Path] = {}
    for run in runs:
        bad = run.check()
        if bad:
            raise KvattnError(bad[0])
        for key in run_folder.committed(run.folder)["judgements"]:
            if key in seen:
                raise KvattnError(f"question {key} is in both {seen[key]} and {run.folder}; shards must not overlap")
            seen[key] = run.folder
    manifest = {k: v for k, v in runs[0].manifest.items() if k != "late"}
    manifest["sessions"] = [session for run in runs for session in run.manifest.get("sessions", [])]
    manifest["capture"] = manifest.get("capture", True) and rows
    with run_folder.RunWriter(into, manifest) as writer:
        for run in runs[1:]:
            differing = run_folder.differences(run.manifest, runs[0].manifest)
            if differing:
                raise KvattnError(f"{run.folder} was judged otherwise than {runs[0].folder}: {differing[0]}")
        for run in runs:
            for table in TABLES:  # the judgements, which commit a unit, come last
                for key, part in run_folder.committed(run.folder)[table].items():
                    data = part.read_bytes()
                    if not rows and table in ("mass", "slots", "sums"):
                        data = run_folder.to_parquet(pq.read_schema(part).empty_table())
                    name = f"part-{key}-{content_hash(data)}.parquet"
                    write_atomically(writer.folder / table / name, data)
    if (runs[0].folder / "heldout").is_dir():
        merge([runs[0].folder / "heldout"], Path(into) / "heldout", rows)
    return Path(into)


def _name(*parts: str | Source) -> str:
    """A file name of a model, a source and further words."""
    said = [(x.name or Path(x.source).stem) if isinstance(x, Source) else x for x in parts]
    said[0] = Path(said[0]).name.removesuffix(".gguf")
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", x) for x in said)
