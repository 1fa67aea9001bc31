"""Models of the Hugging Face Hub: fetched into the Hub's own cache, safetensors and text files only."""

from __future__ import annotations

import os
from pathlib import Path

from kvattn.errors import KvattnError
from kvattn.files import is_full
from kvattn.text import Progress, silent

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["*/*", "consolidated*"]  # other formats and second copies of the same weights


def fetch(name: str, revision: str | None, progress: Progress = silent) -> Path:
    """The folder of the model's snapshot, fetched first if it is not in the Hub's cache.

    name: `org/model`, with or without `@revision`. Raises KvattnError, saying the way out, for an id or a revision
    that does not exist, a gated model, no connection, no safetensors, or no room.
    """
    repository = name.partition("@")[0]
    if (folder := cached(name, revision)) is not None and _pinned(revision):
        return folder
    progress(f"fetching {name} from the Hub", 0, 1)
    try:
        folder = Path(_snapshot(repository, revision))
    except Exception as error:
        raise _explain(name, repository, error) from error
    if not any(folder.glob("*.safetensors")):
        raise KvattnError(
            f"{name} has no safetensors weights on the Hub; pickled ones can run code when they are read, "
            "so name a model or a revision that has safetensors"
        )
    return folder


def cached(name: str, revision: str | None) -> Path | None:
    """The folder of the model's snapshot in the Hub's cache, or None. Never asks the network."""
    try:
        folder = Path(_snapshot(name.partition("@")[0], revision, local_files_only=True))
    except Exception:
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def commit(folder: Path) -> str:
    """The commit that a snapshot's folder holds: the cache names the folder by it."""
    return folder.name


def _pinned(revision: str | None) -> bool:
    """Whether the revision is a full commit hash: nothing on the Hub can change what it stands for."""
    return revision is not None and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def _snapshot(repository: str, revision: str | None, local_files_only: bool = False) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repository,
        revision=revision,
        allow_patterns=WANTED,
        ignore_patterns=UNWANTED,
        local_files_only=local_files_only,
    )


def _explain(name: str, repository: str, error: Exception) -> KvattnError:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return KvattnError(f"{name!r} is neither a folder nor a Hub id; a Hub id is org/model or org/model@revision")
    if isinstance(error, errors.GatedRepoError):
        return KvattnError(f"{name} is gated; accept its terms on its page, then run: hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return KvattnError(f"the Hub has no model {repository} that you may read; check the id, or run: hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return KvattnError(f"the Hub has no revision {name.partition('@')[2]!r} of {repository}; check it")
    if is_full(error):
        return KvattnError(
            f"no room for {name}: the disk ran full; free some, or set HF_HOME to a folder on another disk"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        why = "is not in the Hub's cache, and HF_HUB_OFFLINE is set"
        return KvattnError(f"{name} {why}; unset it, or name a local folder, a .gguf file or smollm2-135m")
    return KvattnError(
        f"{name} is not in the Hub's cache and the Hub cannot be reached ({type(error).__name__}); "
        "check the connection, or name a local folder, a .gguf file or smollm2-135m"
    )
