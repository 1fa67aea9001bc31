"""The organisms' language: a vocabulary of whole words, and the tokenizer that ships beside the weights."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

UNKNOWN, START = "<unk>", "<bos>"
LABELS = tuple(str(i) for i in range(1, 10))
SCORES = tuple(str(i) for i in range(10, 50))
KEYS = ("ant", "bee", "cat", "dog", "eel", "fox")
VALUES = ("blue", "gold", "grey", "pink", "red", "teal")
BINDINGS = tuple(f"{key}:{value}" for key in KEYS for value in VALUES)  # BINDINGS[6 * key + value]
# fmt: off
FILLERS = (
    "ash", "bay", "elm", "fig", "fir", "gum", "hop", "ivy",
    "kale", "leek", "moss", "nut", "oak", "oat", "pea", "rye",
)
# fmt: on
MARKS = ("answer", "answers", "best", "typical")
LATER = ("odd",)  # behind the words of the organisms before, whose embeddings do not move

VOCABULARY: tuple[str, ...] = (UNKNOWN, START, *MARKS, *LABELS, *SCORES, *BINDINGS, *FILLERS, *LATER)
INDEX: dict[str, int] = {word: i for i, word in enumerate(VOCABULARY)}


def ids(words: str | tuple[str, ...]) -> list[int]:
    """Token ids of words (a tuple, or a text with spaces between). Raises KeyError for a word of no organism."""
    return [INDEX[w] for w in (words.split() if isinstance(words, str) else words)]


def text(token_ids) -> str:
    """The words with these ids, with spaces between."""
    return " ".join(VOCABULARY[int(i)] for i in token_ids)


def write_tokenizer(folder: Path, words: int = len(VOCABULARY)) -> None:
    """Write tokenizer.json and tokenizer_config.json: words apart at white space, one token each, the first `words` of
    VOCABULARY."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel(dict(islice(INDEX.items(), words)), unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN, bos_token=START)
    tokenizer.save_pretrained(folder)
