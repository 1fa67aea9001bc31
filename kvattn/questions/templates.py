"""Templates: the trusted text around a question and its candidates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PlainValidator

from kvattn.errors import KvattnError, unknown

MAX_CANDIDATES = 16
TASKS = ("math", "choice", "code", "free")
HEADER = "Agent {label}:\n"  # the words over each candidate
Role = Literal["system", "user", "assistant"]


def _labels(value: Any) -> str | tuple[str, ...]:
    if value in ("digits", "letters"):
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(x, str) and x.strip() for x in value):
        raise ValueError('must be digits, letters, or a list of names in quotes, e.g. ["A", "B"]')
    if len({x.strip().lower() for x in value}) < len(value):
        raise ValueError("must be names that differ")
    return tuple(value)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as OpenAI's chat interface has it; `content` may hold marks
    (`kvattn.questions.conversation`)."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    role: Role
    content: str


@dataclass(frozen=True)
class Template:
    """The trusted text around a question and its candidates: parts that are put together, or a whole conversation with
    marks. Every template of parts has a system text of its own: chat templates such as SmolLM2's and Qwen2.5's put in
    one of theirs where there is none.

    messages: the conversation, with `{{question}}` and `{{candidate.1}}`, ... where those stand; a last turn of the
              assistant opens the judge's own. The parts that the judge reads are then empty
    labels:   what slots are called: "digits" (up to nine, letters above), "letters", or names, in the order of slots,
              a tie's behind them
    verdict:  a regular expression whose one group is the label in a written verdict; "": kvattn's own rules
    task:     how final answers are read (`kvattn.questions.answers`); "": by the name, else "free"
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    name: str
    system: str
    question_heading: str
    candidates_heading: str
    header: str  # holds {label}
    separator: str
    instruction: str  # what follows the candidates, before what the readout asks
    agent_system: str  # the execution agents' system text
    agent_instruction: str  # what follows the question in an execution agent's prompt
    label_question: str = "Then reply with one line of the form: Selected agent id: <id>"
    label_opening: str = "Selected agent id: "  # opens the judge's turn; the label comes next
    yesno_branch: str = "Is the final answer of Agent {label} correct? Reply with Yes or No."
    tie_rule: str = "If both are equally good, the id is {tie}."  # follows label_question where a tie is a verdict
    score_branch: str = "How good is the answer of Agent {label}, from {low} to {high}? Reply with the number alone."
    scale: tuple[int, int] = (1, 10)  # the lowest and the highest score
    chat: Annotated[bool, Field(strict=True)] = True  # False: never wrapped in the tokenizer's chat template
    labels: Annotated[str | tuple[str, ...], PlainValidator(_labels)] = "digits"
    verdict: str = ""
    task: Literal["", "math", "choice", "code", "free"] = ""
    messages: tuple[Message, ...] = ()

    @property
    def kind(self) -> str:
        """The task: how final answers are read, "math", "choice", "code" or "free"."""
        return self.task or (self.name if self.name in TASKS else "free")

    @property
    def built_in(self) -> bool:
        """Whether its name says all of it."""
        return TEMPLATES.get(self.name) == self

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of what it says, its name included."""
        return hashlib.sha256(json.dumps(self.to_json(), ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """The name of a built-in template; of another one with the beginning of its hash, so that it is this very
        one."""
        return self.name if self.built_in else f"{self.name}@{self.sha256[:12]}"

    def slot_labels(self, n: int) -> tuple[str, ...]:
        """The labels shown for n slots. Raises KvattnError where there are not so many."""
        if isinstance(self.labels, str):
            return slot_labels(n, self.labels)
        if n > len(self.labels):
            raise KvattnError(
                f"the template {self.name!r} has {len(self.labels)} labels, and {n} candidates are shown; name as many"
            )
        return self.labels[:n]

    @property
    def tie_label(self) -> str:
        """What a tie is called: as a third slot would be. Raises KvattnError where no name is left for it."""
        if isinstance(self.labels, str):
            return slot_labels(3, self.labels)[2]
        if len(self.labels) < 3:
            raise KvattnError(
                f"the template {self.name!r} names {', '.join(self.labels)} and no tie; name it as the third of "
                "'labels', or take the readout label"
            )
        return self.labels[2]

    def to_json(self) -> dict[str, Any]:
        """JSON-able, for a manifest; what came later is left out where it is not used."""
        said = asdict(self)
        late = ("tie_rule", "score_branch", "scale", "labels", "verdict", "task", "messages")
        defaults = {f.name: f.default for f in fields(self)}
        return {k: str(v) for k, v in said.items() if k not in late} | {
            k: list(said[k]) if isinstance(said[k], tuple) else said[k] for k in late if said[k] != defaults[k]
        }


def slot_labels(n: int, kind: str = "digits") -> tuple[str, ...]:
    """The labels shown for n slots: digits up to nine, letters above (so that each can be one token); or letters."""
    if not 1 <= n <= MAX_CANDIDATES:
        raise KvattnError(f"{n} candidates; a judge prompt takes 1 to {MAX_CANDIDATES}")
    if kind == "digits" and n <= 9:
        return tuple(str(i + 1) for i in range(n))
    return tuple(chr(ord("A") + i) for i in range(n))


def _of_task(name: str, task: str, agent_system: str, agent_instruction: str) -> Template:
    return Template(
        name=name,
        system=f"You are a careful judge. Several agents answered the same {task}. Compare their answers with each "
        "other and decide which agent answered best.",
        question_heading="Question:\n",
        candidates_heading="\n\nCandidate answers:\n\n",
        header=HEADER,
        separator="\n\n",
        instruction="Check the reasoning of every agent against the question and against the other agents.",
        agent_system=agent_system,
        agent_instruction=agent_instruction,
    )


def _organism(name: str, instruction: str) -> Template:
    """A model organism's: one token a header, one token a suffix, nothing else around the candidates. In a window of
    one block, candidates can then reach the decision through candidate tokens alone."""
    return Template(
        name=name,
        system="",
        question_heading="",
        candidates_heading="answers",
        header="{label}",
        separator="",
        instruction=instruction,
        agent_system="",
        agent_instruction="answer",
        label_question="",
        label_opening="",
        chat=False,
    )


TEMPLATES: dict[str, Template] = {
    t.name: t
    for t in (
        _of_task(
            "math",
            "math word problem",
            "You solve math word problems step by step.",
            "\n\nEnd with a line of the form: The answer is n",
        ),
        _of_task(
            "choice",
            "multiple-choice question",
            "You answer multiple-choice questions.",
            "\n\nFirst line: one letter. Then explain in fewer than 100 words.",
        ),
        _of_task(
            "code",
            "programming task",
            "You are a programmer.",
            "\n\nReply with one code block and nothing else.",
        ),
        _of_task("free", "question", "You answer questions.", "\n\nAnswer the question."),
        replace(
            _of_task("relational", "question", "You answer questions.", "\n\nSay what you know in a few words."),
            instruction="Compare what the agents say with each other and with what the question asks for.",
            yesno_branch="Is Agent {label} the right choice? Reply with Yes or No.",
        ),
        _organism("organism-max", "best"),
        _organism("organism-overlap", "typical"),
        _organism("organism-odd", "odd"),
    )
}


def get_template(name: str) -> Template:
    """The template of that name. Raises KvattnError for an unknown one."""
    if name not in TEMPLATES:
        raise unknown("template", name, TEMPLATES)
    return TEMPLATES[name]
