"""Templates as YAML files: the fields of `kvattn.questions.templates.Template`, read, checked, written
(docs/templates.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError, unknown
from kvattn.files import read_yaml
from kvattn.questions.conversation import Place, check, marked, with_marks, words
from kvattn.questions.templates import TEMPLATES, Template
from kvattn.questions.validation import validated

# What a conversation says in its own words.
JUDGED = ("system", "question_heading", "candidates_heading", "instruction", "label_question", "label_opening")
LONGEST = 200_000  # characters of a template


@dataclass(frozen=True)
class Spans:
    """What a file says of where texts stand, in a conversation that is written out."""

    spans: tuple[Place, ...]


def find_template(name: str | Path) -> Template:
    """A built-in template by its name, else that of a file. Raises KvattnError for what is neither."""
    if isinstance(name, str) and name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if path.suffix.lower() not in (".yaml", ".yml", ".json") and not path.exists():
        raise unknown("template or file", str(name), TEMPLATES)
    return read_template(path)


def read_template(path: str | Path) -> Template:
    """The template of a YAML file (JSON is YAML, too). Raises KvattnError naming the file, the field and what is wrong
    with it."""
    path = Path(path)
    said = read_yaml(path)
    if not isinstance(said, dict):
        raise KvattnError(f"{path}: a template is a mapping with keys such as messages, or system and instruction")
    return of_entries(said, str(path), path.stem)


def of_entries(entries: Mapping[str, Any], where: str, name: str = "") -> Template:
    """The template of a mapping; what it does not say is as in the template `free`."""
    if "messages" in entries and (both := [k for k in JUDGED if k in entries]):
        raise KvattnError(f"{where}: {both[0]!r} and 'messages' both say what the judge reads; leave one out")
    blank = dict.fromkeys(JUDGED, "") if "messages" in entries else {}
    free = {k: v for k, v in vars(TEMPLATES["free"]).items() if k != "name"}
    own = {k: v for k, v in entries.items() if k != "spans"}
    template = validated(Template, {**free, "name": name, **blank, **own}, where)
    try:
        if "spans" in entries:
            places = validated(Spans, {"spans": entries["spans"]}, where).spans
            template = replace(template, messages=with_marks(template.messages, places))
        _check(template, "messages" in entries)
    except KvattnError as error:
        raise KvattnError(f"{where}: {error}") from None
    return template


def of_manifest(said: Mapping[str, Any]) -> Template:
    """The template that a run's manifest holds (`Template.to_json`). Raises KvattnError where it holds none."""
    chat = {"True": True, "False": False}.get(str(said.get("chat", True)), said.get("chat"))
    return validated(Template, {**said, "chat": chat}, "the manifest's template")


def to_yaml(template: Template) -> str:
    """The template as the text of a file that gives it back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, said: str) -> Any:
        style = None if "\n" not in said else "|" if said == said.strip() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", said, style=style)

    Dumper.add_representer(str, text)
    said = {**template.to_json(), "chat": template.chat}
    blank = JUDGED if template.messages else ()
    return yaml.dump({k: v for k, v in said.items() if k not in blank}, Dumper=Dumper, sort_keys=False, width=10**6)


def _check(template: Template, conversation: bool) -> None:
    t = template
    if conversation and not t.messages:
        raise KvattnError("'messages' is empty; give the conversation, or leave the key out")
    if not re.fullmatch(r"[^\s/\\@][^/\\@\n]{0,79}", t.name):
        raise KvattnError(f"the name {t.name!r:.60} is no plain word; give 'name', without / and @, of 80 characters")
    if t.name in TEMPLATES and not t.built_in:
        raise KvattnError(f"{t.name!r} is a built-in template, and this one differs; give it a 'name' of its own")
    for key in ("header", "yesno_branch", "score_branch"):
        if "{label}" not in getattr(t, key):
            raise KvattnError(f"field {key!r} holds no {{label}}, so that the judge cannot tell whom it is about")
    if not 0 <= t.scale[0] < t.scale[1]:
        raise KvattnError(f"field 'scale' is {list(t.scale)}; give the lowest and the highest score, such as [1, 10]")
    if sum(map(len, (*words(t), *(str(v) for k, v in vars(t).items() if k != "messages")))) > LONGEST:
        raise KvattnError(f"it is longer than {LONGEST} characters; no prompt is")
    try:
        groups = re.compile(t.verdict).groups
    except re.error as error:
        raise KvattnError(f"field 'verdict' is no regular expression ({error})") from None
    if t.verdict and groups != 1:
        raise KvattnError(
            f"field 'verdict' has {groups} groups; put the label, and nothing else, in one: \\[\\[(\\w)\\]\\]"
        )
    if conversation:
        check(t)
        t.slot_labels(marked(t))
