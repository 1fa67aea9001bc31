"""A study's units judged by actors on the machines of a Ray cluster; one process writes.

A unit may come twice, where an actor was taken for lost; the study drops the second.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvattn.errors import KvattnError, unknown
from kvattn.study.study import Executor, Local, Study, Unit
from kvattn.text import hash_of

if TYPE_CHECKING:
    import pyarrow as pa

IN_FLIGHT = 2  # units an actor holds: the one it judges, and the next, so that it never waits for the writer
LOSSES = 3  # so often may a unit's actor be lost, before the unit is taken for what kills it
PATIENCE = 600.0  # seconds to wait for a first place in the cluster


@dataclass
class Ray:
    """Actors of a Ray cluster, each with the judge's model; a context manager that joins the cluster and leaves it.

    An actor that is lost, with its node or alone, gives its units back, and another takes its place where there is room
    for one. Errors of judging end the run, as they do locally.

    workers: actors to start (default: as many as the cluster's CPUs or GPUs hold)
    cpus:    threads of an actor, and of this process
    gpus:    GPUs of an actor; a fraction lets several share one
    address: of the cluster; "auto" for the one this machine is in, None to start one on this machine alone
    losses:  actors that were lost so far
    """

    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None
    losses: int = field(default=0, init=False)
    ordered = False
    _crew: list[_Worker] = field(default_factory=list, repr=False)
    _joined: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus < 1 or self.gpus < 0:
            raise KvattnError("a Ray executor takes at least one worker, one CPU, and no fewer than 0 GPUs")

    def __enter__(self) -> Ray:
        ray = _ray()
        import torch

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        torch.set_num_threads(self.cpus)  # a run says how many threads judged it: these are the actors' too
        if not ray.is_initialized():
            try:
                host, colon, port = (self.address or "").rpartition(":")
                if colon and port.isdigit():  # Ray itself tries for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise KvattnError(f"there is no Ray cluster at {self.address} ({error}); see docs/scale.md") from None
            self._joined = True
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._crew:
            worker.end()
        self._crew.clear()
        if self._joined:
            _ray().shutdown()
            self._joined = False

    def units(self, study: Study, todo: Sequence[int]) -> Iterator[Unit]:
        """The units, as they are finished.

        Raises KvattnError where judging does, where no actor finds a place, and for a unit whose actor is lost again
        and again."""
        if study.judge.engine.device.type == "cuda" and not self.gpus:
            raise KvattnError(
                "the judge is on a GPU, and Ray hides those from actors that ask for none: --worker-gpus 1"
            )
        ray = _ray()
        briefing = ray.put(Briefing.of(study, self.cpus))
        waiting, lost = deque(todo), dict.fromkeys(todo, 0)
        self._crew = self._crew or [self._hire() for _ in range(min(self._places(), len(todo)))]
        for worker in self._crew:
            worker.brief(briefing)
        missing = set(todo)
        while missing:
            for worker in self._crew:
                while worker.ready and waiting and len(worker.units) < IN_FLIGHT:
                    worker.give(waiting.popleft())
            refs = {ref: worker for worker in self._crew for ref in worker.refs}
            idle = not any(worker.ready for worker in self._crew)
            found, _ = ray.wait(list(refs), timeout=PATIENCE if idle else None)
            if not found:
                raise KvattnError(self._no_place())
            worker, ref = refs[found[0]], found[0]
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                raise KvattnError(str(cause)) from None if isinstance(cause, KvattnError) else error
            except ray.exceptions.RayError as error:
                self.losses += 1
                back = worker.end()
                self._crew[self._crew.index(worker)] = fresh = self._hire()
                fresh.brief(briefing)
                for i in back:
                    lost[i] += 1
                    if lost[i] >= LOSSES:
                        raise KvattnError(
                            f"question {study.prompts[i].id!r}: {LOSSES} actors were lost while they held it "
                            f"({type(error).__name__}); look at their memory, or give each more (fewer --workers)"
                        ) from None
                waiting.extendleft(reversed(back))
                continue
            index = worker.take(ref)
            if index is not None:
                missing.discard(index)
                yield index, answer

    def _places(self) -> int:
        if self.workers is not None:
            return self.workers
        has = _ray().cluster_resources()
        places = [has.get("CPU", 0) // self.cpus, *([has.get("GPU", 0) // self.gpus] if self.gpus else [])]
        if min(places) < 1:
            raise KvattnError(self._no_place())
        return int(min(places))

    def _no_place(self) -> str:
        has = _ray().cluster_resources()
        return (
            f"the Ray cluster has no place for an actor of {self.cpus} CPUs and {self.gpus:g} GPUs: it has "
            f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs; add nodes, or ask for less"
        )

    def _hire(self) -> _Worker:
        actor = _ray().remote(_Actor).options(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)
        return _Worker(actor.remote())


@dataclass(eq=False)
class _Worker:
    """An actor as this process sees it: whether it holds the study's model yet, and which units it was given."""

    actor: Any
    ready: bool = False
    briefing: Any = None
    units: dict[Any, int] = field(default_factory=dict)  # by the reference to their tables

    @property
    def refs(self) -> list[Any]:
        """What it may answer next."""
        return [*self.units] if self.ready else [self.briefing]

    def brief(self, briefing: Any) -> None:
        """Tell it what is judged; it is ready when it has the model. Units are given to those that are ready alone: one
        that finds no place in the cluster must not sit on any."""
        self.ready, self.briefing = False, self.actor.prepare.remote(briefing)

    def give(self, index: int) -> None:
        """A unit to judge."""
        self.units[self.actor.unit.remote(index)] = index

    def take(self, ref: Any) -> int | None:
        """What it answered: the index of a unit, or None when it has become ready."""
        if ref == self.briefing:
            self.ready, self.briefing = True, None
            return None
        return self.units.pop(ref)

    def end(self) -> list[int]:
        """Let it go; the units it held."""
        _ray().kill(self.actor)
        held = list(self.units.values())
        self.units.clear()
        return held


@dataclass(frozen=True)
class Briefing:
    """What an actor needs to make the same study around a model of its own."""

    model: str
    dtype: str
    device: str
    identity: str | None
    threads: int
    study: Study  # its judge has no engine

    @staticmethod
    def of(study: Study, threads: int) -> Briefing:
        """The briefing for a study. Raises KvattnError for a model that another machine could not load."""
        engine = study.judge.engine
        name = engine.info.get("name")
        if engine.spread:
            raise KvattnError(
                "the judge is spread by a device map, which actors have none of: judge with executor local"
            )
        if name is None:
            raise KvattnError("a model that was made in memory cannot be loaded by other processes; give its folder")
        place = engine.info["folder"] if engine.info.get("kind") in ("folder", "gguf", "adapter") else name
        return Briefing(
            model=str(place),
            dtype=str(engine.dtype).removeprefix("torch."),
            device=engine.device.type,  # an actor sees its own GPUs alone, whatever number this one has here
            identity=hash_of(engine.identity),
            threads=threads,
            study=replace(
                study, judge=replace(study.judge, engine=None), methods=study.zoo, heldout=(), executor=Local()
            ),
        )


class _Actor:
    """Holds a model; judges units of one study after another."""

    def __init__(self) -> None:
        self.loaded: tuple[str | None, ...] = ()
        self.engine: Any = None
        self.study: Any = None

    def prepare(self, briefing: Briefing) -> None:
        """Load the model, unless it is there from the study before."""
        import torch

        from kvattn.judge.judge import load

        torch.set_num_threads(briefing.threads)
        wanted = (briefing.model, briefing.dtype, briefing.device, briefing.identity)
        if self.loaded != wanted:
            self.engine = load(briefing.model, dtype=briefing.dtype, device=briefing.device).engine
            self.loaded = wanted
        if hash_of(self.engine.identity) != briefing.identity:
            raise KvattnError(
                f"a node of the cluster has other weights under {briefing.model}: {self.engine.identity}, not "
                f"{briefing.identity}; give all nodes the same files"
            )
        self.study = replace(briefing.study, judge=replace(briefing.study.judge, engine=self.engine))

    def unit(self, index: int) -> dict[str, pa.Table]:
        """The tables of one unit."""
        return self.study.unit(index)


def get(
    name: str, workers: int | None, cpus: int, gpus: float, address: str | None
) -> AbstractContextManager[Executor]:
    """The executor of that name, to be entered. Raises KvattnError for an unknown one."""
    if name == "ray":
        return Ray(workers, cpus, gpus, address)
    if name != "local":
        raise unknown("executor", name, ("local", "ray"))
    if (workers, cpus, gpus, address) != (None, 1, 0.0, None):
        raise KvattnError("--workers, --worker-cpus, --worker-gpus and --address are for --executor ray")
    return nullcontext(Local())


def _ray() -> Any:
    try:
        ray: Any = import_module("ray")
        import_module("ray.exceptions")
    except ImportError:
        raise KvattnError('Ray is not installed; pip install "kvattn[ray]"') from None
    return ray
