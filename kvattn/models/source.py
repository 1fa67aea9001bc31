"""Where weights come from: the embedded judge, packaged models, local folders, GGUF files, the Hub; and adapters.

Safetensors only, and never code from a model's repository: what would need either is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from kvattn.errors import KvattnError, unknown
from kvattn.files import is_lfs_pointer, sha256
from kvattn.models import adapter, hub
from kvattn.models.folder import MARGIN, RECORDS, build, damage, models_root, read_record
from kvattn.models.loading import first_line, load_model, load_tokenizer
from kvattn.models.wheel import EMBEDDED, fill
from kvattn.questions import organism
from kvattn.questions.organism import ALIASES
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = Path(organism.__file__).parent  # one folder per model, named as the model
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
DTYPES = ("float32", "bfloat16", "float16")

Kind = Literal["embedded", "packaged", "folder", "gguf", "hub", "adapter"]


@dataclass(frozen=True)
class ModelSource:
    """A model by the name a user gave, and where its weights are or will be.

    folder:   the folder of safetensors; for "hub" None, since the Hub's own cache decides
    path:     the GGUF file, for "gguf"
    revision: "sha256:..." of the GGUF that the weights come from, or the Hub revision that was asked for
    parts:    base and adapter, for "adapter"; `folder` is then the adapter's
    """

    name: str
    kind: Kind
    origin: str
    folder: Path | None = None
    path: Path | None = None
    revision: str | None = None
    parts: tuple[ModelSource, ...] = ()

    @property
    def prepared(self) -> bool:
        """Whether the weights can be loaded as they lie on this disk."""
        if self.parts:
            return all(part.prepared for part in self.parts)
        if self.kind == "hub":
            return hub.cached(self.name, self.revision) is not None
        assert self.folder is not None
        return damage(self.folder) is None if self.kind in ("embedded", "gguf") else True


@dataclass(frozen=True)
class ModelInfo:
    """Which weights were loaded, for a run's manifest.

    hashes: file name to "sha256:..."; an adapter's base has its own under "base/"
    parameters: tied ones counted once
    folder: where it was loaded from; a name of the model on this machine, BASE+ADAPTER for an adapter
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
    base: str | None = None
    adapter: str | None = None

    def to_dict(self) -> dict:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class ModelListing:
    """A line of `kvattn models list`. `bytes` is what lies on the disk; `note` says why an unprepared folder that is
    there does not count."""

    name: str
    prepared: bool
    bytes: int
    origin: str
    folder: Path
    note: str = ""


def packaged() -> dict[str, Path]:
    """The models that come with kvattn itself, by name and by alias."""
    found = {path.parent.name: path.parent for path in sorted(PACKAGED.glob("*/config.json"))}
    return found | {alias: found[name] for alias, name in ALIASES.items() if name in found}


def known_names() -> list[str]:
    """The short names that `resolve` knows."""
    return sorted({*EMBEDDED, *packaged(), *adapter.shipped()})


def resolve(name: str) -> ModelSource:
    """What `name` stands for: a known short name, a .gguf file, a local folder, a Hub id (`org/model@revision`), or one
    of these and an adapter (`smollm2-135m+ADAPTER`: a shipped one's name, a PEFT folder or its Hub id).

    Looks at the disk, never at the network; a GGUF is hashed, since its prepared folder is found by its content.
    Raises KvattnError for a name that stands for nothing (the known ones listed, the nearest suggested).
    """
    if name in EMBEDDED:
        model = EMBEDDED[name]
        return ModelSource(name, "embedded", model.origin, models_root() / name, revision=f"sha256:{model.gguf_sha256}")
    if (folder := packaged().get(name)) is not None:
        return ModelSource(name, "packaged", "comes with kvattn", folder)
    if (folder := adapter.shipped().get(name)) is not None:
        return _resolve_adapter(name, ModelSource(name, "packaged", "comes with kvattn", folder))
    if not name.strip():
        raise unknown("model", name, known_names())
    path = Path(name).expanduser()
    if "+" in name and not path.exists():
        return _resolve_sum(name)
    if path.suffix.lower() == ".gguf":
        return _resolve_gguf(name, path)
    if path.is_dir():
        source = ModelSource(name, "folder", "local folder", path.resolve())
        return _resolve_adapter(name, source) if adapter.is_adapter(path) else source
    if path.is_file():
        raise KvattnError(f"{name} is a file; name the folder of the model, or a .gguf file")
    if re.match(r"[./~]", name) or name.count("/") > 1:
        raise KvattnError(f"there is no folder {name}; name a model's folder, a .gguf file or a Hub id")
    if "/" not in name:
        raise unknown("model", name, known_names())
    repository, _, revision = name.partition("@")
    source = ModelSource(name, "hub", f"Hub, {repository}", revision=revision or None)
    return _resolve_adapter(name, source) if adapter.is_adapter(hub.cached(name, source.revision)) else source


def _resolve_sum(name: str) -> ModelSource:
    """BASE+ADAPTER, cut at the first + whose two sides stand for something."""
    errors = []
    for at in (i for i, letter in enumerate(name) if letter == "+"):
        try:
            base, added = resolve(name[:at]), _part(name[at + 1 :])
        except KvattnError as error:
            errors.append(error)
            continue
        return _resolve_adapter(name, added, base)
    raise errors[0]


def _part(name: str) -> ModelSource:
    """The adapter of that name, without its base."""
    if (folder := adapter.shipped().get(name)) is not None:
        return ModelSource(name, "packaged", "comes with kvattn", folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelSource(name, "folder", "local folder", path.resolve())
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) and not name.startswith("."):
        return ModelSource(name, "hub", f"Hub, {name.partition('@')[0]}", revision=name.partition("@")[2] or None)
    raise KvattnError(f"there is no adapter {name!r}; name a PEFT folder, its Hub id or one of: {_shipped()}")


def _shipped() -> str:
    return ", ".join(adapter.shipped()) or "(none ship)"


def _resolve_adapter(name: str, added: ModelSource, base: ModelSource | None = None) -> ModelSource:
    if base is None:
        folder = added.folder or hub.cached(added.name, added.revision)
        assert folder is not None
        named = adapter.base_name(folder)
        try:
            base = resolve(named)
        except KvattnError as error:
            raise KvattnError(
                f"the base of the adapter {added.name} is not here ({error}); say where it is: BASE+{added.name}"
            ) from error
    if base.parts:
        raise KvattnError(f"{name}: {base.name} is an adapter already; merge one of the two and name that folder")
    return ModelSource(
        name, "adapter", f"{base.name} and an adapter: {added.origin}", added.folder, parts=(base, added)
    )


def _resolve_gguf(name: str, path: Path) -> ModelSource:
    if not path.is_file():
        raise KvattnError(f"there is no file {name}; give the path of a .gguf file")
    if is_lfs_pointer(path):
        raise KvattnError(f"{name} is a Git LFS pointer, not the file itself; run: git lfs pull")
    digest = sha256(path)
    stem = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-.") or "model"
    folder = models_root() / f"gguf-{stem[:60]}-{digest[:16]}"
    return ModelSource(name, "gguf", f"GGUF {path.name}", folder, path.resolve(), f"sha256:{digest}")


def prepare(name: str, progress: Progress = silent) -> ModelSource:
    """Fetches and converts what the model needs, once; returns its source. Nothing happens for what is whole already.

    Building takes seconds to minutes; a build that was interrupted counts for nothing and is made anew. Raises
    KvattnError when the weights cannot be had, are not the expected ones, or do not fit on the disk.
    """
    source = resolve(name)
    if source.kind == "hub":
        fetched = hub.fetch(name, source.revision, progress)
        return prepare(name, progress) if adapter.is_adapter(fetched) else source
    if source.parts:
        base, added = source.parts
        if added.kind == "hub":
            hub.fetch(added.name, added.revision, progress)
        prepare(base.name, progress)
        return source
    if source.prepared:
        progress(f"{name} is ready", 1, 1)
        return source
    assert source.folder is not None
    if source.kind == "embedded":
        model = EMBEDDED[name]
        build(source.folder, lambda partial: fill(model, partial, progress), model.room, progress)
    elif source.kind == "gguf":
        _build_gguf(source, progress)
    progress(f"{name} is ready", 1, 1)
    return source


def _build_gguf(source: ModelSource, progress: Progress) -> None:
    from kvattn.models.gguf import convert, read_header

    path, folder = source.path, source.folder
    assert path is not None
    assert folder is not None
    room = 4 * read_header(path).parameters + MARGIN

    def converted(partial: Path) -> dict:
        return {"name": path.name, "origin": source.origin, "gguf": source.revision, **convert(path, partial, progress)}

    build(folder, converted, room, progress)


def list_models() -> list[ModelListing]:
    """The known models and every GGUF that was converted, with what they take on the disk."""
    rows = [_listing(name, models_root() / name, model.origin) for name, model in EMBEDDED.items()]
    rows += [
        ModelListing(name, True, _bytes(folder), "comes with kvattn", folder) for name, folder in packaged().items()
    ]
    for name, folder in adapter.shipped().items():
        source = resolve(name)
        note = "" if source.prepared else f"needs {source.parts[0].name}"
        rows.append(ModelListing(name, source.prepared, _bytes(folder), source.origin, folder, note))
    for folder in sorted(models_root().glob("gguf-*")):
        source = (read_record(folder) or {}).get("source", {})
        rows.append(_listing(source.get("name", folder.name), folder, source.get("origin", "GGUF")))
    return rows


def _listing(name: str, folder: Path, origin: str) -> ModelListing:
    wrong = damage(folder)
    there = folder.is_dir()
    return ModelListing(name, wrong is None, _bytes(folder), origin, folder, wrong if there and wrong else "")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def load_pretrained(
    name: str, dtype: str = "float32", device: str = "cpu", progress: Progress = silent
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelInfo]:
    """The model (eval mode, no gradients, its own default attention), its tokenizer, and which weights they are.

    A GGUF is converted on its first use and a Hub model fetched; an embedded model has to be prepared before. dtype is
    "float32", "bfloat16", "float16" or "auto" (as stored). Raises KvattnError for weights that are missing, damaged,
    incomplete or pickled, for a model that needs code of its own, and for a device that is not there.
    """
    import torch

    where = _device(device)
    if dtype not in (*DTYPES, "auto"):
        raise unknown("dtype", dtype, [*DTYPES, "auto"])
    source = resolve(name)
    if source.kind == "hub" and adapter.is_adapter(hub.fetch(name, source.revision, progress)):
        source = resolve(name)
    base, *added = source.parts or (source,)
    folder = _ready_folder(base, progress)
    check_folder(folder, base.name)
    hashes, place, said = _hashes(folder), str(folder), None
    if added:
        over = _ready_adapter(added[0], progress)
        adapter.check_base(over, folder, base.name)
        model, tokenizer, said = _load_merged(folder, base.name, over, dtype)
        hashes = {f"base/{key}": value for key, value in hashes.items()} | _hashes(over)
        place = f"{folder}+{over}"
    else:
        model, tokenizer = _load(folder, name, dtype, folder)
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
        base=base.name if added else None,
        adapter=said,
    )
    return model, tokenizer, info


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise KvattnError(f"{name!r} names no device; use cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise KvattnError(
            f"device {name!r} is not there: torch sees {count} CUDA devices; use cpu or another torch build"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise KvattnError("device 'mps' is not there; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise KvattnError(f"device {name!r} is not supported; use cpu, cuda, cuda:N or mps")
    return device


def _ready_folder(source: ModelSource, progress: Progress) -> Path:
    """The folder to load from. Raises KvattnError, naming the way out, where the weights are not ready."""
    if source.kind == "hub":
        return hub.fetch(source.name, source.revision, progress)
    assert source.folder is not None
    if source.kind == "gguf" and not source.prepared:
        prepare(source.name, progress)
    if source.kind == "embedded" and (wrong := damage(source.folder)) is not None:
        state = f"is damaged ({wrong})" if source.folder.is_dir() else "is not prepared yet"
        raise KvattnError(f"model {source.name!r} {state}; run: kvattn models prepare {source.name}")
    return source.folder


def _ready_adapter(source: ModelSource, progress: Progress) -> Path:
    folder = source.folder or hub.fetch(source.name, source.revision, progress)
    if not adapter.is_adapter(folder):
        raise KvattnError(f"{source.name} is no adapter: it holds no {adapter.CONFIG}; name a PEFT folder after the +")
    return folder


def _load_merged(
    folder: Path, base: str, over: Path, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The base in `folder` with the adapter in `over` merged in float32, in the asked dtype; what was merged."""
    import torch

    words = over if (over / "tokenizer.json").is_file() or (over / "tokenizer_config.json").is_file() else folder
    model, tokenizer = _load(folder, base, "auto", words)
    wanted = model.dtype if dtype == "auto" else getattr(torch, dtype)
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


def _load(folder: Path, name: str, dtype: str, words: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in `folder` and the tokenizer in `words`."""
    try:
        model, wrong = load_model(folder, dtype=dtype, use_safetensors=True)
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


def _hashes(folder: Path) -> dict[str, str]:
    """File name to "sha256:..." of what the files that make the model hold, whatever a record beside them says."""
    records = RECORDS if read_record(folder) else ()
    return {
        path.name: f"sha256:{sha256(path)}"
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".jinja", ".model", ".safetensors", ".txt")
        and path.name not in records
        and path.is_file()
    }
