"""Studies judged by others: a unit that comes twice, and a Ray cluster of two nodes of which one is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import frame

from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.study import ray
from kvattn.study.grid import Grid
from kvattn.study.ray import Briefing, Ray
from kvattn.study.run_folder import Run
from kvattn.study.study import Local, Study

SAID = {
    "models": "organism-unsafe",
    "data": {"source": "organism-max", "limit": 8, "heldout": 4},
    "orders": "shuffle:2",
    "methods": ["dense", "naive", "kvcomm:pool=frozen", "last-k:budget=0.5", "foreign-kv"],
}


class Backwards:
    """Judges the last question first, and every question twice, as after an actor that was taken for lost."""

    ordered = False

    def units(self, study: Study, todo: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in reversed(todo):
            yield i, study.unit(i)
            yield i, study.unit(i)


def equal(a: Path, b: Path, tolerance: float = 0.0) -> None:
    """The same units, choices and numbers, timings apart; nothing damaged."""
    assert not Run(a).check()
    assert not Run(b).check()
    one, two = (frame(p).drop(columns="seconds") for p in (a, b))
    pd.testing.assert_frame_equal(one, two, check_exact=not tolerance, rtol=tolerance, atol=tolerance)
    for table in ("questions", "mass", "sums"):
        left, right = (getattr(Run(p), table)() for p in (a, b))
        assert len(left) == len(right) > 0
        numbers = left.select_dtypes("number").columns
        assert np.allclose(left[numbers], right[numbers], atol=tolerance, equal_nan=True)
    for key in ("calibration", "content_test", "methods", "model", "data", "threads"):
        assert Run(a).manifest[key] == Run(b).manifest[key], key


def test_units_in_any_order_and_twice_are_the_same_run(tmp_path: Path) -> None:
    grid = Grid.of(SAID)
    seen: list[int] = []
    (whole,) = grid.run(tmp_path / "whole")
    (other,) = replace(grid, executor=Backwards()).run(
        tmp_path / "other", lambda what, i, n: seen.append(i) if what == "judging" else None
    )
    equal(whole, other)
    assert len(Run(other)) == 8
    assert seen == list(range(9))


def test_a_method_that_learns_is_not_spread(tmp_path: Path) -> None:
    grid = replace(Grid.of({**SAID, "methods": ["dense", "kvcomm"]}), executor=Backwards())
    with pytest.raises(KvattnError, match="learns from question to question and cannot be sharded"):
        grid.run(tmp_path)


def test_an_actor_makes_the_study_of_the_order(tmp_path: Path) -> None:
    """What an actor does, without Ray: the order travels by pickle, the model does not."""
    import pickle

    _, study = next(iter(Grid.of(SAID).studies(tmp_path)))
    study = replace(study, methods=["dense", "naive"])
    travelled = pickle.dumps(Briefing.of(study, 1))
    assert len(travelled) < 100_000
    actor = ray._Actor()
    actor.prepare(pickle.loads(travelled))
    mine, its = study.unit(1), actor.unit(1)
    for name in ("questions", "mass", "sums"):
        assert mine[name].equals(its[name])
    assert mine["judgements"].drop_columns("seconds").equals(its["judgements"].drop_columns("seconds"))
    with pytest.raises(KvattnError, match="other weights"):
        actor.prepare(replace(Briefing.of(study, 1), identity="sha256:0"))


def test_actors_of_a_judge_on_a_gpu_have_gpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, study = next(iter(Grid.of(SAID).studies(tmp_path)))
    assert Briefing.of(study, 1).device == "cpu"
    monkeypatch.setattr(Engine, "device", property(lambda self: torch.device("cuda", 1)))
    assert Briefing.of(study, 1).device == "cuda"  # the first of those that the actor sees
    with pytest.raises(KvattnError, match="--worker-gpus"):
        next(Ray().units(study, [0]))


def test_what_makes_no_executor_is_named() -> None:
    with pytest.raises(KvattnError, match="did you mean 'ray'"):
        ray.get("rai", None, 1, 0.0, None)
    with pytest.raises(KvattnError, match="for --executor ray"):
        ray.get("local", 3, 1, 0.0, None)
    with pytest.raises(KvattnError, match="at least one worker"):
        Ray(workers=0)
    with ray.get("local", None, 1, 0.0, None) as made:
        assert isinstance(made, Local)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a head without places, and two nodes with one each."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'kvattn[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_node_that_is_lost_loses_no_unit(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes, one killed mid-run: the tables are those of a local run; so are those of a run that was continued."""

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    grid = Grid.of({**SAID, "data": {**SAID["data"], "limit": 24, "heldout": 8}})
    killed: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if what == "judging" and done >= 6 and not killed:
            cluster.remove_node(nodes[0], allow_graceful=False)
            killed.append(done)

    with Ray(workers=2, address=cluster.address) as spread:
        (run,) = replace(grid, executor=spread).run(tmp_path / "spread", kill)
    assert killed
    assert spread.losses == 1
    assert len(Run(run)) == 24
    torch.set_num_threads(1)
    try:
        (whole,) = grid.run(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    equal(run, whole, 1e-5)


@pytest.mark.slow
def test_errors_of_judging_and_a_cluster_without_room_are_one_line(cluster: Any, tmp_path: Path) -> None:
    grid = Grid.of({**SAID, "methods": ["dense", "naive"]})
    with (
        pytest.raises(KvattnError, match="no place for an actor of 1 CPUs and 3 GPUs"),
        Ray(gpus=3, address=cluster.address) as spread,
    ):
        replace(grid, executor=spread).run(tmp_path / "none")
    cluster.add_node(num_cpus=1)
    bad = {**SAID, "methods": ["dense"], "orders": "shuffle:99", "data": {"source": "organism-max", "limit": 3}}
    with pytest.raises(KvattnError, match="fewer than shuffle:99") as error, Ray(address=cluster.address) as spread:
        replace(Grid.of(bad), executor=spread).run(tmp_path / "bad")
    assert "\n" not in str(error.value)
    with pytest.raises(KvattnError, match="no Ray cluster at"), Ray(address="127.0.0.1:1"):
        pass
