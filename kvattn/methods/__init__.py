"""The zoo: every way of building the judge's cache, by name. Third parties register through the entry-point group
`kvattn.methods`: an entry's name is the method's, its value a subclass of `Method`."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points

from kvattn.errors import KvattnError, unknown
from kvattn.methods.agents import Agents
from kvattn.methods.base import Method
from kvattn.methods.cacheclip import CacheClip
from kvattn.methods.controls import ForeignKV, MismatchedOrder, NullEdit
from kvattn.methods.foreign import ForeignCache
from kvattn.methods.fresh import Dense, Isolated, Pointwise, TrueMask
from kvattn.methods.hybrid import Hybrid, Progressive
from kvattn.methods.kvcomm import PALKV, KVComm, SlotAligned
from kvattn.methods.links import Links
from kvattn.methods.mapped import Mapped
from kvattn.methods.naive import Naive, NaiveLinked
from kvattn.methods.offset import SlotOffset
from kvattn.methods.patch import LowRankPatch
from kvattn.methods.repaired import Repaired
from kvattn.methods.samkv import SamKV
from kvattn.methods.selective import POLICIES
from kvattn.methods.tail import Tail
from kvattn.questions import labels

BUILTIN: tuple[type[Method], ...] = (
    *(Dense, TrueMask, Isolated, Naive, NaiveLinked, KVComm, PALKV, SlotAligned),
    *(*POLICIES, SamKV, Tail, Links, LowRankPatch, Hybrid, Progressive),
    *(Pointwise, SlotOffset, ForeignKV, NullEdit, MismatchedOrder),
)
GIVEN: tuple[type[Method], ...] = (ForeignCache,)  # those that cannot plan unless a cache is given
TRAINED: tuple[type[Method], ...] = (Repaired,)  # those that cannot plan until they were trained
HELPED: tuple[type[Method], ...] = (CacheClip, Agents, Mapped)  # those that cannot plan without another model
LADDER = (
    *("dense", "true-mask", "isolated", "isolated:labelled=false"),
    *("naive-linked:headers=isolated", "naive-linked", "naive", "foreign-kv"),
)

__all__ = ["BUILTIN", "GIVEN", "HELPED", "LADDER", "TRAINED", "Method", "get", "parse", "registry"]


def registry() -> dict[str, type[Method]]:
    """All known methods by name, those of installed plugins among them."""
    found = {m.name: m for m in BUILTIN}
    for entry in _plugins(tuple(sys.path)):
        if entry.name in {*found, *(m.name for m in (*GIVEN, *TRAINED, *HELPED))}:
            raise KvattnError(f"method {entry.name!r} of {entry.value} collides with one that exists")
        found[entry.name] = entry.load()
    return found


@lru_cache(maxsize=1)
def _plugins(_path: tuple[str, ...]) -> EntryPoints:
    """The entry points of what is installed on the path: a look at all packages takes longer than a method's spec."""
    return entry_points(group="kvattn.methods")


def get(spec: str | Method) -> Method:
    """A method from its spec, "naive-linked:headers=isolated", or its label, "naive-linked(headers=isolated)";
    a parameter that is a method is written as a label: "last-k:budget=0.1,base=isolated(labelled=false)"."""
    if isinstance(spec, Method):
        return spec
    if not isinstance(spec, str):
        raise KvattnError(f"{spec!r:.60} is no method; give its name, or a method made of its parameters")
    name, items = labels.read(spec)
    known = registry() | {m.name: m for m in (*GIVEN, *TRAINED, *HELPED)}
    if name not in known:
        raise unknown("method", name, known)
    cls = known[name]
    hints = typing.get_type_hints(cls)
    fields = cls.fields()
    values = {}
    for item in items:
        key, eq, text = item.partition("=")
        if not eq and cls.lone:
            key, eq, text = cls.lone, "=", item
        if key not in fields or not eq:
            raise KvattnError(f"method {name!r} has no parameter {key!r}; it takes {', '.join(fields) or 'none'}")
        if key in values:
            raise KvattnError(f"method {name!r}: {key} is given twice")
        values[key] = _value(name, key, text, hints[key])
    return cls.build(values, get)


def parse(specs: str | Iterable[str | Method]) -> list[Method]:
    """Methods from a comma-separated list, or from any number of specs. Outside brackets, parameters of a list's spec
    are separated by "+": "dense,last-k:budget=0.3+per=ramp". Raises KvattnError for a method given twice."""
    if isinstance(specs, str):
        specs = [s.replace("+", ",") for s in labels.split(specs)]
    out: dict[str, Method] = {}
    for method in map(get, specs):
        if method.label in out:
            raise KvattnError(f"method {method.label!r} is given twice")
        out[method.label] = method
    if not out:
        raise KvattnError("no method given")
    return list(out.values())


def _value(name: str, key: str, text: str, hint):
    if options := typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ():
        if text not in (found := {str(o): o for o in options}):
            raise KvattnError(f"method {name!r}: {key} is one of {', '.join(found)}, not {text!r}")
        return found[text]
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if isinstance(hint, type) and issubclass(hint, Method):
        return get(text)
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        return hint(text)
    except (KeyError, ValueError) as e:
        raise KvattnError(f"method {name!r}: {key} takes a {hint.__name__}, not {text!r}") from e
