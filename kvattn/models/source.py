"""Where weights come from: the embedded judge, packaged models, local folders, GGUF files, the Hub; and adapters.

Safetensors only, and never code from a model's repository: what would need either is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from kvattn.errors import KvattnError, unknown
from kvattn.files import is_lfs_pointer, sha256
from kvattn.models import adapter, hub
from kvattn.models.folder import MARGIN, build, damage, models_root, read_record
from kvattn.models.wheel import EMBEDDED, fill
from kvattn.questions import organism
from kvattn.questions.organism import ALIASES
from kvattn.text import Progress, silent

PACKAGED = Path(organism.__file__).parent  # one folder per model, named as the model

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
            raise no_adapter(found.name)
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


def no_adapter(name: str) -> KvattnError:
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
    source = fetched(name, progress)
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


def fetched(name: str, progress: Progress) -> ModelSource:
    """What `name` stands for, with all that it needs of the Hub on this disk."""
    source = resolve(name)
    for part in source.parts or (source,):
        if part.kind == "hub":
            hub.fetch(part.name, part.revision, progress)
    again = resolve(name)  # a Hub id may turn out to be an adapter, whose base may be on the Hub as well
    return again if again.parts == source.parts else fetched(name, progress)


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
