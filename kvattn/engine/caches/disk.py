"""Blocks on a disk: kvattn's own file, and the folder that vLLM's example connector writes; safetensors, never a pickle
(docs/caches.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvattn.engine.caches.memory import integers
from kvattn.engine.plan import KVBlock
from kvattn.errors import KvattnError, unknown
from kvattn.files import is_lfs_pointer, read_json, replacing
from kvattn.questions.prompt import JudgePrompt

FORMAT = "kvattn-cache-1"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
TENSORS = ("keys", "values", "token_ids", "positions")
LARGEST = 64 * 2**30  # bytes of one file


def save(path: str | Path, given: KVBlock, question: str | None = None, candidate: str | None = None) -> None:
    """Write a block as one file; it appears whole or not at all.

    question, candidate: ids in a candidates file, for `kvattn judge FILE --caches`; a question alone says that the
    block is a whole prompt's"""
    from safetensors.torch import save_file

    if given.keys.dtype not in DTYPES.values():
        raise KvattnError(f"a cache of {given.keys.dtype} is not written; it is one of {', '.join(_known())}")
    told = {"format": FORMAT, "weights": given.weights, "question": question, "candidate": candidate}
    tensors = {name: getattr(given, name).detach().cpu().contiguous().clone() for name in TENSORS}
    try:
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, {k: v for k, v in told.items() if v})
    except OSError as e:
        raise KvattnError(f"cannot write {path}: {e.strerror or e}") from None


def load(path: str | Path, token_ids: Sequence[int] | Tensor | None = None, kv_heads: int | None = None) -> KVBlock:
    """The block in a file of `save`, or of the sequence in a folder that vLLM's example connector wrote (then with its
    ids, a list beside it in ids.json or given here, and of older versions the model's number of kv heads).

    Raises KvattnError for a file that is no such, is damaged, or is one that reading would run."""
    path = Path(path)
    if path.is_dir():
        return _connector(path, token_ids, kv_heads)
    with _opened(path) as (file, told):
        if told.get("format") != FORMAT:
            raise KvattnError(f"{path} is no cache of kvattn ({FORMAT}); write it with kvattn.caches.save")
        if set(file.keys()) != set(TENSORS):
            raise KvattnError(f"{path} holds {_list(file.keys())}; a cache holds {_list(TENSORS)}")
        shapes = {name: file.get_slice(name).get_shape() for name in TENSORS}
        kinds = {name: file.get_slice(name).get_dtype() for name in TENSORS}
        if kinds["keys"] not in DTYPES or kinds["values"] != kinds["keys"]:
            raise KvattnError(f"{path}: keys of {kinds['keys']}, values of {kinds['values']}; both are {_list(DTYPES)}")
        n = shapes["keys"][2] if len(shapes["keys"]) == 4 else -1
        if shapes["keys"] != shapes["values"] or shapes["token_ids"] != [n] or shapes["positions"] != [n]:
            raise KvattnError(
                f"{path}: {', '.join(f'{k} {v}' for k, v in shapes.items())}; they are [layers, kv heads, tokens, dim] "
                "twice and [tokens] twice"
            )
        if kinds["token_ids"] != "I64" or kinds["positions"] != "I64" or n < 1:
            raise KvattnError(
                f"{path}: token_ids and positions are whole numbers (I64), one a token, of 1 token or more"
            )
        held = {name: file.get_tensor(name) for name in TENSORS}
    if token_ids is not None:
        held["token_ids"] = integers(token_ids, "token_ids")
    return KVBlock(**held, source="given", weights=told.get("weights"))


def named(prompt: JudgePrompt, folder: str | Path = ".") -> dict[str, KVBlock]:
    """By candidate, the blocks in the files that a question's candidates name, relative to a folder.

    Raises KvattnError for a file that cannot be read, and for one that says that it is another candidate's."""
    out: dict[str, KVBlock] = {}
    for c in prompt.candidates:
        if c.cache is None:
            continue
        path = Path(folder) / c.cache
        what = f"question {prompt.id!r}: cache of candidate {c.id!r}"
        if not path.is_file():
            raise KvattnError(f"{what}: {path} is no file; the field cache names one of kvattn.caches.save")
        with _opened(path) as (_, told):
            of = (told.get("question", prompt.id), told.get("candidate", c.id))
        if of != (prompt.id, c.id):
            raise KvattnError(f"{what}: {path} says that it is {_of(*of)}; name its own file")
        out[c.id] = load(path)
    return out


class Folder:
    """The caches of a candidates file: files of `save` that name their question, and their candidate unless they are of
    a whole prompt. Only their heads are read at first.

    Raises KvattnError for a folder without any, and for two of one candidate."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files: dict[tuple[str | None, str | None], Path] = {}
        if not self.path.is_dir():
            raise KvattnError(f"{self.path} is no folder; give one with files of kvattn.caches.save")
        for file in sorted(self.path.glob("*.safetensors")):
            with _opened(file) as (_, told):
                key = (told.get("question"), told.get("candidate"))
            if told.get("format") != FORMAT or not key[0]:
                raise KvattnError(
                    f"{file} names no question; write it with kvattn.caches.save(..., question=, candidate=)"
                )
            if key in self.files:
                raise KvattnError(f"{file} and {self.files[key].name} are both {_of(*key)}; leave one of them out")
            self.files[key] = file
        if not self.files:
            raise KvattnError(f"{self.path} holds no cache (*.safetensors); write some with kvattn.caches.save")
        self.used = False

    def of(self, prompt: JudgePrompt) -> tuple[dict[str, KVBlock], KVBlock | None]:
        """The blocks of a question by candidate, and that of its whole prompt; none where the folder has none. Raises
        KvattnError for a candidate that the question lacks."""
        mine = {candidate: file for (q, candidate), file in self.files.items() if q == prompt.id}
        self.used |= bool(mine)
        known = {c.id for c in prompt.candidates}
        for candidate in mine.keys() - known - {None}:
            raise unknown(f"candidate in {mine[candidate]}, a cache of question {prompt.id!r},", str(candidate), known)
        whole = mine.pop(None, None)
        return {str(c): load(file) for c, file in mine.items()}, load(whole) if whole else None

    def refuse_unused(self) -> None:
        """Raises KvattnError where no question had a cache here: the ids are others."""
        if not self.used:
            named = {q for q, _ in self.files}
            raise KvattnError(f"no question has a cache in {self.path}, which names {_list(named)}; check the ids")


def _of(question: str | None, candidate: str | None) -> str:
    return f"of question {question!r}, " + ("the whole prompt" if candidate is None else f"candidate {candidate!r}")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file of safetensors and what its head tells."""
    if not path.is_file():
        raise KvattnError(f"{path} is no file; name one that kvattn.caches.save wrote, or a folder of vLLM's")
    if is_lfs_pointer(path):
        raise KvattnError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
    if path.stat().st_size > LARGEST:
        raise KvattnError(f"{path} is larger than {LARGEST // 2**30} GiB; cut the cache into blocks")
    try:
        with safe_open(path, "pt") as file:
            yield file, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise KvattnError(
            f"{path} cannot be read as safetensors ({str(error).splitlines()[0]}); pickles are never read, since they "
            "can run code: write it with kvattn.caches.save"
        ) from error


# -- vLLM's example connector (vllm-project/vllm, vllm/distributed/kv_transfer/kv_connector/v1/example_connector.py) ---


def _connector(folder: Path, token_ids: Sequence[int] | Tensor | None, kv_heads: int | None) -> KVBlock:
    """FOLDER/<name of the layer>.safetensors, each with one tensor "kv_cache", either [2, tokens, kv heads x dim] in
    older versions or [tokens, kv heads, 2 x dim], key and value side by side; keys turned to positions 0, 1, 2, ...
    The last, unfilled block of its pages is left out, so the ids may be longer than the cache."""
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        numbers = re.findall(r"\.layers\.(\d+)\.", f".{path.stem}.")
        if len(numbers) != 1 or int(numbers[0]) in files:
            raise KvattnError(f"{path} names no layer of its own (model.layers.N.self_attn.attn); leave it out")
        files[int(numbers[0])] = path
    if sorted(files) != list(range(len(files))) or not files:
        raise KvattnError(f"{folder} holds layers {sorted(files)}; a cache has all of 0, 1, 2, ... as NAME.safetensors")
    ids = _ids_beside(folder) if token_ids is None else integers(token_ids, "token_ids")
    layers = []
    for index in range(len(files)):
        with _opened(files[index]) as (file, _):
            if set(file.keys()) != {"kv_cache"} or file.get_slice("kv_cache").get_dtype() not in DTYPES:
                raise KvattnError(f"{files[index]} holds {_list(file.keys())}; it is kv_cache alone, {_list(DTYPES)}")
            layers.append(file.get_tensor("kv_cache"))
    if any(x.shape != layers[0].shape or x.dim() != 3 or x.dtype != layers[0].dtype for x in layers):
        raise KvattnError(f"{folder}: kv_cache is {sorted({tuple(x.shape) for x in layers})}; all are alike, of 3 axes")
    packed, (a, b, c) = torch.stack(layers), layers[0].shape
    old, new = a == 2 and b <= len(ids), a <= len(ids) and c % 2 == 0 and kv_heads in (None, b)
    if old:
        if kv_heads is None or c % kv_heads:
            raise KvattnError(
                f"{folder}: kv_cache is {[a, b, c]}, which does not say its heads; give kv_heads, the model's"
            )
        keys, values = packed.unflatten(3, (kv_heads, -1)).permute(1, 0, 3, 2, 4)
    elif new:
        keys, values = packed.transpose(1, 2).chunk(2, -1)
    else:
        raise KvattnError(
            f"{folder}: kv_cache is {[a, b, c]} for {len(ids)} ids; it is [2, tokens, kv heads x dim] or [tokens, kv "
            "heads, 2 x dim], of no more tokens than ids"
        )
    n = keys.shape[2]
    return KVBlock(keys.contiguous(), values.contiguous(), ids[:n], torch.arange(n), source="given")


def _ids_beside(folder: Path) -> Tensor:
    try:
        return integers(read_json(folder / "ids.json"), f"{folder / 'ids.json'}: token ids")
    except (OSError, ValueError):
        raise KvattnError(
            f"{folder} says its tokens by a hash alone; put the list of their ids beside it, in ids.json"
        ) from None


def _known() -> list[str]:
    return [str(x).removeprefix("torch.") for x in DTYPES.values()]


def _list(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
