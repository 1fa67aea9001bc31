"""A model, its tokenizer, and which weights they are, loaded from what a name stands for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kvattn.errors import KvattnError, unknown
from kvattn.files import is_lfs_pointer, sha256
from kvattn.models import adapter, hub, places
from kvattn.models.fastest import fastest
from kvattn.models.folder import RECORDS, damage, read_record
from kvattn.models.loading import first_line, load_model, load_tokenizer, quantisation
from kvattn.models.places import DeviceMap
from kvattn.models.source import Kind, ModelSource, fetched, no_adapter, prepare
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
DTYPES = ("float32", "bfloat16", "float16", "stored", "auto")


@dataclass(frozen=True)
class ModelInfo:
    """Which weights were loaded, for a run's manifest.

    hashes: file name to "sha256:..."; an adapter's base has its own under "base/"
    parameters: tied ones counted once
    folder: where it was loaded from; a name of the model on this machine, BASE+ADAPTER for an adapter
    quantised: by what, of weights that are; `dtype` is then what they are multiplied in
    precision: for the dtype "auto", which was taken and what was measured
    base, adapter: of an adapter, the name of its base and what was merged
    """

    name: str
    kind: Kind
    origin: str
    revision: str | None
    folder: str
    architecture: str
    parameters: int
    dtype: str
    hashes: dict[str, str] = field(default_factory=dict)
    quantised: str | None = None
    precision: str | None = None
    base: str | None = None
    adapter: str | None = None

    def to_dict(self) -> dict:
        """As JSON holds it."""
        return asdict(self)


def load_pretrained(
    name: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    progress: Progress = silent,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelInfo]:
    """The model (eval mode, no gradients, its own default attention), its tokenizer, and which weights they are.

    A GGUF is converted on its first use and a Hub model fetched; an embedded model has to be prepared before. dtype is
    "float32", "bfloat16", "float16", "stored" (as the files have it) or "auto" (bfloat16 where the device multiplies it
    faster, else float32).

    device_map: in the place of `device`, "auto" or which module goes where, as accelerate has it: {"model.layers.0":
                "cuda:0", ...}; "disk" for weights that are read anew whenever they are needed

    Raises KvattnError for weights that are missing, damaged, incomplete or pickled, for a model that needs code of its
    own, and for a device that is not there.
    """
    import torch

    where = places.find(device)
    spread = None if device_map is None else places.checked(device_map, device)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if not isinstance(name, str | Path):
        raise KvattnError(f"{name!r:.60} names no model; give an alias, a folder, a .gguf file, or a Hub id")
    name, precision = str(name), None
    if dtype == "auto":
        dtype, precision = fastest(where if spread is None else places.first(spread))
    source = fetched(name, progress)
    base, *added = source.parts or (source,)
    folder = _ready_folder(base, progress)
    check_folder(folder, base.name)
    quantised = quantisation(folder, base.name)
    over = _ready_folder(added[0], progress) if added else None
    hashes, place, said = _hashes(folder, over), str(folder), None
    if over is not None:
        if spread is not None or quantised:
            raise KvattnError(
                f"{name}: an adapter is merged in float32 on one device; merge it with peft, save that, and take it"
            )
        if not adapter.is_adapter(over):
            raise no_adapter(added[0].name)
        adapter.check_base(over, folder, base.name)
        model, tokenizer, said = _load_merged(folder, base.name, over, dtype)
        place = f"{folder}+{over}"
    else:
        model, tokenizer = _load(folder, name, dtype, folder, spread)
    if spread is None:
        torch.nn.Module.to(model, where)
    model.eval().requires_grad_(False)
    info = ModelInfo(
        name=name,
        kind=source.kind,
        origin=source.origin,
        revision=hub.commit(folder) if source.kind == "hub" else source.revision,
        folder=place,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        hashes=hashes,
        quantised=quantised,
        precision=precision,
        base=base.name if added else None,
        adapter=said,
    )
    return model, tokenizer, info


def _ready_folder(source: ModelSource, progress: Progress) -> Path:
    """The folder to load from. Raises KvattnError, naming the way out, where the weights are not ready."""
    if source.kind == "hub":
        source = replace(source, folder=hub.cached(source.name, source.revision))
    assert source.folder is not None
    if source.kind == "gguf" and not source.prepared:
        prepare(source.name, progress)
    if source.kind == "embedded" and (wrong := damage(source.folder)) is not None:
        state = f"is damaged ({wrong})" if source.folder.is_dir() else "is not prepared yet"
        raise KvattnError(f"model {source.name!r} {state}; run: kvattn models prepare {source.name}")
    return source.folder


def _load_merged(
    folder: Path, base: str, over: Path, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The base in `folder` with the adapter in `over` merged in float32, in the asked dtype; what was merged."""
    import torch

    words = over if (over / "tokenizer.json").is_file() or (over / "tokenizer_config.json").is_file() else folder
    model, tokenizer = _load(folder, base, "stored", words)
    wanted = model.dtype if dtype == "stored" else getattr(torch, dtype)
    model, said = adapter.merge(model.float(), over, base)
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay in float32
        parameter.data = parameter.data.to(wanted)
    return model, tokenizer, said


def check_folder(folder: Path, name: str) -> None:
    """Raises KvattnError unless the folder holds a whole model as safetensors."""
    for path in sorted(folder.iterdir()):
        if is_lfs_pointer(path):
            raise KvattnError(f"{name}: {path.name} is a Git LFS pointer, not the file itself; run: git lfs pull")
    if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
        if not any((folder / file).is_file() for file in TOKENIZERS):
            raise KvattnError(
                f"{name} holds no tokenizer, such as {TOKENIZERS[0]}; copy it from where the model is from"
            )
        return
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        raise KvattnError(
            f"{name} holds pickled weights ({pickles[0]}), which can run code when they are read; "
            "save the model as safetensors"
        )
    if ggufs := sorted(folder.glob("*.gguf")):
        raise KvattnError(f"{name} holds a GGUF; name the file itself: {ggufs[0]}")
    lacking = "safetensors" if (folder / "config.json").is_file() else "config.json"
    raise KvattnError(f"{name} holds no model: there is no {lacking} in {folder}")


def _load(
    folder: Path, name: str, dtype: str, words: Path, spread: DeviceMap | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in `folder` and the tokenizer in `words`."""
    try:
        options = {} if spread is None else places.options(folder, spread)
        stored = "auto" if dtype == "stored" else dtype
        model, wrong = load_model(folder, dtype=stored, use_safetensors=True, **options)
        if wrong:
            raise KvattnError(f"{name} is not what its files say: {wrong}; fetch it again, or correct its config.json")
        return model, load_tokenizer(words, name, len(cast("Any", model.get_input_embeddings()).weight))
    except KvattnError:
        raise
    except Exception as error:
        raise _load_error(name, error) from error


def _load_error(name: str, error: Exception) -> KvattnError:
    """One line for whatever transformers says about a folder that it cannot read."""
    if "trust_remote_code" in str(error):
        return KvattnError(f"{name} needs code of its own (auto_map), which kvattn never runs; use another model")
    return KvattnError(f"{name} cannot be loaded ({first_line(error)}); check its files, or name another model")


def fingerprint(name: str) -> str:
    """SHA-256 of the files that make the model (an adapter's with its base's), without loading it. Raises KvattnError
    where they cannot be had."""
    source = fetched(name, silent)
    hashes = _hashes(*(_ready_folder(part, silent) for part in source.parts or (source,)))
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _hashes(folder: Path, over: Path | None = None) -> dict[str, str]:
    """File name to "sha256:..." of what the files that make the model hold, whatever a record beside them says; of a
    base and the adapter over it, the base's under "base/"."""
    if over is not None:
        hashes = {f"base/{key}": value for key, value in _hashes(folder).items()} | _hashes(over)
        hashes.pop("kvattn.json", None)  # how it was trained is no part of what it is
        return hashes
    records = RECORDS if read_record(folder) else ()
    return {
        path.name: f"sha256:{sha256(path)}"
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".jinja", ".model", ".safetensors", ".txt")
        and path.name not in records
        and path.is_file()
    }
