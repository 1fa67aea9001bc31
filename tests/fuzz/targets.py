"""What is fuzzed: parsers of files, and good files, some of whose values are replaced (tests/fuzz/parsers.py)."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import test_hostile as seeds
import tiny
import torch
import yaml

from kvattn.cli.audit import read_claims, read_prompts
from kvattn.engine import caches
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.judge.doctor import examine
from kvattn.models import adapter
from kvattn.models.pretrained import load_pretrained
from kvattn.questions import candidates, problems
from kvattn.study.gate.gate import Gate
from kvattn.study.grid import Grid
from kvattn.study.run_folder.reader import read_manifest

STRANGE = [None, True, -1, 10**30, 0.5, "", [], {}, [0], {"a": 0}, math.inf]


class Parse(Protocol):
    """Reads a file, or raises KvattnError."""

    def __call__(self, path: Path, /) -> object: ...


@dataclass
class Target:
    """What reads files, the name that they have, and good ones: JSON documents, and files as they are."""

    parsers: list[Parse]
    name: str
    documents: list[Any]
    files: tuple[bytes, ...] = ()

    def run(self, path: Path) -> None:
        """Raises AssertionError where a parser ends in anything but a value or one printable line."""
        for parse in self.parsers:
            try:
                parse(path)
            except KvattnError as error:
                if not str(error) or not str(error).isprintable():
                    raise AssertionError(f"no line: {error!r}") from error

    def packed(self, document: Any) -> bytes:
        """A document as a file."""
        return json.dumps(document).encode()

    def harmed(self, number: Callable[[int], int], text: Callable[[], str]) -> bytes:
        """A good document with a few values at any depth replaced, as a file; `number` draws from 0 to its argument."""
        document = json.loads(json.dumps(self.documents[number(len(self.documents) - 1)]))
        for _ in range(1 + number(2)):
            at = document
            while isinstance(at, dict | list) and at:
                key = list(at if isinstance(at, dict) else range(len(at)))[number(len(at) - 1)]
                if not isinstance(at[key], dict | list) or not at[key] or number(2) == 0:
                    at[key] = text() if number(1) else copy.deepcopy(STRANGE[number(len(STRANGE) - 1)])
                    break
                at = at[key]
        return self.packed(document)


class Safetensors(Target):
    """Files whose head is a JSON document, behind its length."""

    def packed(self, document: Any) -> bytes:
        """The head, and zeros."""
        head = super().packed(document)
        return len(head).to_bytes(8, "little") + head + bytes(1088)


def _named(parse: Parse, name: str) -> Parse:
    """The parser of a file of that name beside."""

    def parsed(path: Path) -> None:
        beside = path.parent / name
        beside.parent.mkdir(exist_ok=True)
        beside.write_bytes(path.read_bytes())
        parse(beside)

    return parsed


YAML = (
    b"data: &d [{source: f.jsonl, limit: 3}]\nmodels: [m, n]\n",
    b"base: &b {seed: 3}\ndata: x\n<<: *b\n",
    b"data:\n  - source: f.jsonl\n    <<: {limit: 2}\n? methods\n: - dense\n  - !!str 3\nname: |\n  two\n  lines\n",
    b"data: x\nseed: 0o17\ndtype: !!binary aGk=\norders: 2020-01-01\ncapture: off\nmodels: !!set {a, b}\n",
    b"%YAML 1.1\n---\ndata: x\n...\n---\ndata: y\n",
    yaml.dump(seeds.STUDY).encode(),
)
HEAD = {
    "__metadata__": {"format": "kvattn-cache-1", "weights": "w@sha256:1", "question": "q", "candidate": "c"},
    "keys": {"dtype": "F32", "shape": [2, 2, 4, 8], "data_offsets": [0, 512]},
    "values": {"dtype": "F32", "shape": [2, 2, 4, 8], "data_offsets": [512, 1024]},
    "token_ids": {"dtype": "I64", "shape": [4], "data_offsets": [1024, 1056]},
    "positions": {"dtype": "I64", "shape": [4], "data_offsets": [1056, 1088]},
}
LAYER = {"kv_cache": {"dtype": "F32", "shape": [17, 2, 8], "data_offsets": [0, 1088]}}
CLAIMS = [[1, 2, 3], {"token_ids": [1, 2], "positions": [0, 1], "blocks": {"a": [0, 2]}}, {"a": "text", "b": [1, 2]}]
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "org/base",
    "revision": "main",
    "init_lora_weights": True,
    "modules_to_save": None,
    "base_weights": {"model.safetensors": "sha256:1"},
}


def _adapter(path: Path) -> None:
    folder = path.parent
    (folder / "kvattn.json").write_bytes(path.read_bytes())
    adapter.read_config(folder)
    adapter.base_name(folder)


class Model(Target):
    """The files of a tiny model that are JSON, one of them harmed."""

    def __init__(self, folder: Path) -> None:
        tiny.save(folder)
        names = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
        self.folder, self.whole = folder, {n: (folder / n).read_bytes() for n in names if (folder / n).is_file()}
        super().__init__([self._load], "file", [[name, json.loads(data)] for name, data in self.whole.items()])

    def _load(self, path: Path) -> None:
        try:
            name, document = json.loads(path.read_bytes())
            data = json.dumps(document).encode()
        except (ValueError, TypeError, RecursionError):
            name, data = "config.json", path.read_bytes()
        if str(name) not in self.whole:
            name = "config.json"
        name = str(name)
        try:
            (self.folder / name).write_bytes(data)
            model, tokenizer, info = load_pretrained(str(self.folder))
            list(zip(examine(Engine(model, tokenizer, info.to_dict())), range(14), strict=False))
        finally:
            (self.folder / name).write_bytes(self.whole[name])


def target(name: str, folder: Path) -> Target:
    """The target of a name; `folder` is where its files may be made."""
    if name == "manifest":
        from fake_run import Fake, write_fake_run

        run = write_fake_run(folder / "run", Fake(questions=1, candidates=2, orders=1))
        good = json.loads((run / "manifest.json").read_text())
        return Target([lambda p: read_manifest(p.parent)], "manifest.json", [good])
    if name == "model":
        return Model(folder / "model")
    both = [candidates.read_candidates, lambda p: candidates.read_candidates(p, unread={}), problems.load_problems]
    words = tiny.tokenizer()
    return {
        "candidates": Target(
            [_named(parse, f"f.{end}") for parse in both for end in ("jsonl", "json")],
            "file",
            [seeds.QUESTION, {"problems": [seeds.QUESTION]}],
        ),
        "study": Target([Grid.read], "study.yaml", [seeds.STUDY], YAML),
        "gate": Target([Gate.load], "gate.json", list(seeds.GATES.values())),
        "caches": Safetensors(
            [
                caches.load,
                lambda p: caches.Folder(p.parent),
                _named(
                    lambda p: caches.load(p.parent, torch.arange(17), 2), "connector/model.layers.0.attn.safetensors"
                ),
            ],
            "file.safetensors",
            [HEAD, LAYER],
        ),
        "claims": Target([read_claims, lambda p: read_prompts(p, words)], "ids.json", CLAIMS),
        "adapter": Target(
            [_adapter, lambda p: adapter.check_base(p.parent, p.parent, "m")],
            adapter.CONFIG,
            [LORA, {k: v for k, v in LORA.items() if k != "base_weights"}],
        ),
    }[name]


NAMES = ("candidates", "study", "manifest", "gate", "caches", "claims", "adapter", "model")
