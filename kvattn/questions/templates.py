"""Templates: the trusted text around a question and its candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvattn.errors import unknown


@dataclass(frozen=True)
class Template:
    """The trusted text around a question and its candidates. Every template has a system text of its own: chat
    templates such as SmolLM2's and Qwen2.5's put in one of theirs where there is none."""

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
    chat: bool = True  # False: never wrapped in the tokenizer's chat template

    def to_json(self) -> dict[str, str]:
        """As text, for a manifest."""
        return {k: str(v) for k, v in vars(self).items()}


def _of_task(name: str, task: str, agent_system: str, agent_instruction: str) -> Template:
    return Template(
        name=name,
        system=f"You are a careful judge. Several agents answered the same {task}. Compare their answers with each "
        "other and decide which agent answered best.",
        question_heading="Question:\n",
        candidates_heading="\n\nCandidate answers:\n\n",
        header="Agent {label}:\n",
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
