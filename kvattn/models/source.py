"""Where weights come from: the embedded judge, packaged models, local folders, GGUF files, the Hub; and adapters.

Safetensors only, and never code from a model's repository: what would need either is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from functools import partial
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
    errors = []
    if "+" in name and not Path(name).expanduser().exists():
        for at in (i for i, letter in enumerate(name) if letter == "+"):  # a + may stand in a path, too
            try:
                return _with_base(name, _find(name[at + 1 :]), resolve(name[:at]))
            except KvattnError as error:
                errors.append(error)
        raise errors[0]
    return _with_base(name, _find(name))


def _find(name: str) -> ModelSource:
    """A model, or an adapter by itself."""
    if name in EMBEDDED:
        model = EMBEDDED[name]
        return ModelSource(name, "embedded", model.origin, models_root() / name, revision=f"sha256:{model.gguf_sha256}")
    if (folder := (packaged() | adapter.shipped()).get(name)) is not None:
        return ModelSource(name, "packaged", "comes with kvattn", folder)
    if not name.strip():
        raise unknown("model", name, known_names())
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return _resolve_gguf(name, path)
    if path.is_dir():
        return ModelSource(name, "folder", "local folder", path.resolve())
    if path.is_file():
        raise KvattnError(f"{name} is a file; name the folder of the model, or a .gguf file")
    if re.match(r"[./~]", name) or name.count("/") > 1:
        raise KvattnError(f"there is no folder {name}; name a model's folder, a .gguf file or a Hub id")
    if "/" not in name:
        raise unknown("model", name, known_names())
    repository, _, revision = name.partition("@")
    return ModelSource(name, "hub", f"Hub, {repository}", revision=revision or None)


def _with_base(name: str, found: ModelSource, base: ModelSource | None = None) -> ModelSource:
    """What was found, with its base if it is an adapter: the one that is given, else the one that it names."""
    folder = hub.cached(found.name, found.revision) if found.kind == "hub" else found.folder
    if not adapter.is_adapter(folder):
        if base is None:
            return found
        if folder is not None:
            raise _no_adapter(found.name)
    if base is None:
        assert folder is not None
        try:
            base = resolve(adapter.base_name(folder))
        except KvattnError as error:
            raise KvattnError(f"the adapter {name} needs a base ({error}); say where it is: BASE+{name}") from error
    if base.parts:
        raise KvattnError(f"{name}: {base.name} is an adapter already; merge one of the two and name that folder")
    origin = f"{base.name} and an adapter: {found.origin}"
    return ModelSource(name, "adapter", origin, found.folder, parts=(base, found))


def _no_adapter(name: str) -> KvattnError:
    return KvattnError(f"{name} is no adapter: it holds no {adapter.CONFIG}; name a PEFT folder after the +")


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
    source = _fetched(name, progress)
    for part in source.parts or (source,):
        if part.kind in ("embedded", "gguf") and not part.prepared:
            assert part.folder is not None
            if part.kind == "gguf":
                _build_gguf(part, progress)
            else:
                model = EMBEDDED[part.name]
                build(part.folder, partial(fill, model, progress=progress), model.room, progress)
    progress(f"{name} is ready", 1, 1)
    return source


def _fetched(name: str, progress: Progress) -> ModelSource:
    """What `name` stands for, with all that it needs of the Hub on this disk."""
    source = resolve(name)
    for part in source.parts or (source,):
        if part.kind == "hub":
            hub.fetch(part.name, part.revision, progress)
    again = resolve(name)  # a Hub id may turn out to be an adapter, whose base may be on the Hub as well
    return again if again.parts == source.parts else _fetched(name, progress)


def _build_gguf(source: ModelSource, progress: Progress) -> None:
    from kvattn.models.gguf import convert, read_header

    path, folder = source.path, source.folder
    assert path is not None
    assert folder is not None
    room = 4 * read_header(path).parameters + MARGIN

    def converted(into: Path) -> dict:
        return {"name": path.name, "origin": source.origin, "gguf": source.revision, **convert(path, into, progress)}

    build(folder, converted, room, progress)


def list_models() -> list[ModelListing]:
    """The known models and every GGUF that was converted, with what they take on the disk."""
    known = [(name, models_root() / name, model.origin) for name, model in EMBEDDED.items()]
    for folder in sorted(models_root().glob("gguf-*")):
        source = (read_record(folder) or {}).get("source", {})
        known.append((source.get("name", folder.name), folder, source.get("origin", "GGUF")))
    rows = []
    for name, folder, origin in known:
        wrong = damage(folder)
        note = wrong if wrong and folder.is_dir() else ""
        rows.append(ModelListing(name, wrong is None, _bytes(folder), origin, folder, note))
    for name, folder in (packaged() | adapter.shipped()).items():
        source = resolve(name)
        note = "" if source.prepared else f"needs {source.parts[0].name}"
        rows.append(ModelListing(name, source.prepared, _bytes(folder), source.origin, folder, note))
    return rows


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
    source = _fetched(name, progress)
    base, *added = source.parts or (source,)
    folder = _ready_folder(base, progress)
    check_folder(folder, base.name)
    hashes, place, said = _hashes(folder), str(folder), None
    if added:
        over = _ready_folder(added[0], progress)
        if not adapter.is_adapter(over):
            raise _no_adapter(added[0].name)
        adapter.check_base(over, folder, base.name)
        model, tokenizer, said = _load_merged(folder, base.name, over, dtype)
        hashes = {f"base/{key}": value for key, value in hashes.items()} | _hashes(over)
        hashes.pop("kvattn.json", None)  # how it was trained is no part of what it is
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
