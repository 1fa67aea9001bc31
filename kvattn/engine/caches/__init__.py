"""Caches that others made, as blocks: out of memory and off a disk, and back."""

from kvattn.engine.caches.disk import Folder, load, named, save
from kvattn.engine.caches.memory import block, dynamic

__all__ = ["Folder", "block", "dynamic", "load", "named", "save"]
