"""Naive reuse as llama.cpp does it, beside kvattn's plan of the same prompt: label logits, picks, where they differ.

    python -m benchmarks.llamacpp --gguf SmolLM2-135M-Instruct.Q4_1.gguf [--questions 24] [--record FILE.json]
        [--out FILE.md]

Needs llama-cpp-python. Every candidate is decoded in a sequence of its own, behind its agent's context; the context is
dropped (llama_memory_seq_rm), the rest is shifted to its place in the judge's prompt (llama_memory_seq_add) and copied
into the judge's sequence (llama_memory_seq_cp), where everything else is decoded: what llama-server's --cache-reuse
does with a chunk that it finds again, and kvattn's naive-linked. Three weights: the GGUF as it is (Q4_1: its products
are taken in 8 bits), its numbers written out in fp32, and the judge that ships, merged and written out in fp32; keys
and values in fp32 or, as is the default there, in fp16.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvattn.engine.blocks import Blocks
from kvattn.engine.layout import PromptLayout
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge, load
from kvattn.methods import get
from kvattn.questions import load as load_data
from kvattn.questions.orders import assign
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats.intervals import rate
from kvattn.text import interval

SEED = 62
ROOM = 2048  # tokens of a context
METHODS = ("dense", "naive-linked")
SETS = ("lookup", "plurality")


class Llama:
    """A model of llama.cpp on one thread.

    half: keys and values in fp16 and the kernel that it takes by itself; else fp32 and no fused attention
    """

    def __init__(self, path: Path, half: bool, sequences: int = 17) -> None:
        import llama_cpp.llama_cpp as api  # type: ignore[import-not-found]

        self.api = api
        self.quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        how = api.llama_model_default_params()
        how.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), how)
        if not self.model:
            raise KvattnError(f"llama.cpp cannot read {path}")
        how = api.llama_context_default_params()
        how.n_ctx = how.n_batch = how.n_ubatch = ROOM
        how.n_seq_max, how.kv_unified = sequences, True
        how.n_threads = how.n_threads_batch = 1
        how.type_k = how.type_v = api.GGML_TYPE_F16 if half else api.GGML_TYPE_F32
        if not half:
            how.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = api.llama_init_from_model(self.model, how)
        self.memory = api.llama_get_memory(self.context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        if not api.llama_memory_can_shift(self.memory):
            raise KvattnError(f"llama.cpp cannot shift the keys of {path}")

    def decode(self, ids: Sequence[int], start: int, sequence: int, logits: bool = False) -> np.ndarray | None:
        """Tokens at positions from `start` on, appended to a sequence; logits [vocabulary] after the last."""
        if not len(ids):
            return None
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = int(token), start + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = int(logits and i == len(ids) - 1)
            if status := self.api.llama_decode(self.context, batch):
                raise KvattnError(f"llama_decode says {status} for {len(ids)} tokens at {start}")
        finally:
            self.api.llama_batch_free(batch)
        if not logits:
            return None
        found = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, (self.vocabulary,)).astype(np.float64)

    def dense(self, layout: PromptLayout) -> np.ndarray:
        """Logits at the end of the prompt."""
        self.api.llama_memory_clear(self.memory, True)
        found = self.decode(layout.token_ids.tolist(), 0, 0, logits=True)
        assert found is not None
        return found

    def reuse(self, layout: PromptLayout, contexts: PromptLayout) -> np.ndarray:
        """The same with every candidate decoded in its agent's context, shifted and copied.

        contexts: the agents' (`PromptCompiler.execution`), in which slots are candidates, named in `candidates`"""
        api, memory = self.api, self.memory
        api.llama_memory_clear(memory, True)
        index = {name: i for i, name in enumerate(contexts.candidates)}
        blocks = {}
        for s, name in layout.shown():
            agent, sequence = index[name], 1 + index[name]
            own = contexts.select(lambda t, agent=agent: t.slot in (None, agent))
            span = own.find("candidate", agent)
            self.decode(own.token_ids.tolist(), 0, sequence)
            api.llama_memory_seq_rm(memory, sequence, 0, span.start)
            api.llama_memory_seq_add(memory, sequence, span.start, span.stop, s.start - span.start)
            blocks[s.start] = sequence
        waiting: list[int] = []
        began = 0
        for s in layout.segments:
            if s.start not in blocks or s.role != "candidate":
                waiting += layout.token_ids[s.start : s.stop].tolist()
                continue
            self.decode(waiting, began, 0)
            api.llama_memory_seq_cp(memory, blocks[s.start], 0, s.start, s.stop)
            waiting, began = [], s.stop
        found = self.decode(waiting, began, 0, logits=True)
        assert found is not None
        return found

    def close(self) -> None:
        """Give model and context back."""
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def written(gguf_file: Path, judge: Judge, out: Path) -> Path:
    """The judge's own weights in fp32, in a GGUF like the given one: the rows of query and key in llama.cpp's order,
    which turns neighbours where transformers turns halves."""
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    config, state = judge.engine.model.config, judge.engine.model.state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    mine = {f"{names.get_name(k.rpartition('.')[0])}.{k.rpartition('.')[2]}": v for k, v in state.items()}
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        value = field.contents()
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        weight = mine[tensor.name].float()
        for part, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if f".{part}." in tensor.name:
                weight = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(tensor.name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@dataclass(frozen=True)
class Pair:
    """Label logits [slots] of one prompt under one method, theirs and ours."""

    question: str
    method: str
    theirs: np.ndarray
    ours: np.ndarray

    @property
    def off(self) -> float:
        """The largest difference, less what all labels share."""
        d = self.theirs - self.ours
        return float(np.abs(d - d.mean()).max())


def ours(judge: Judge, prompt: JudgePrompt) -> dict[str, np.ndarray]:
    """By method, kvattn's label logits."""
    layout, blocks = judge.compile(prompt), Blocks(judge.engine, prompt)
    plans = [get(m).plan(layout, blocks, judge.engine) for m in METHODS]
    labels = list(layout.answer_ids)
    made = [judge.engine.execute([p])[0].logits for p in plans]
    return {m: x[0, labels].double().numpy() for m, x in zip(METHODS, made, strict=True) if x is not None}


def pairs(judge: Judge, llama: Llama, prompts: Sequence[JudgePrompt], known: dict) -> Iterator[Pair]:
    """Both sides of every prompt; `known` keeps ours by prompt."""
    for prompt in prompts:
        layout = judge.compile(prompt)
        if prompt not in known:
            known[prompt] = ours(judge, prompt)
        (contexts,) = judge.engine.compiler.execution(prompt)
        labels = list(layout.answer_ids)
        yield Pair(prompt.id, "dense", llama.dense(layout)[labels], known[prompt]["dense"])
        yield Pair(prompt.id, "naive-linked", llama.reuse(layout, contexts)[labels], known[prompt]["naive-linked"])


def row(what: Sequence[str], found: Sequence[Pair]) -> list[str]:
    """The cells of one line: differences, equal picks, and how often reuse picks what dense picks, on both sides."""
    by = {m: [p for p in found if p.method == m] for m in METHODS}
    cells = list(what)
    for m in METHODS:
        off = np.array([p.off for p in by[m]])
        same = [p.theirs.argmax() == p.ours.argmax() for p in by[m]]
        cells += [f"{np.median(off):.2g} ({off.max():.2g})", _rate(same, by[m])]
    both = list(zip(by["dense"], by["naive-linked"], strict=True))
    cells.append(_rate([a.theirs.argmax() == b.theirs.argmax() for a, b in both], by["dense"]))
    cells.append(_rate([a.ours.argmax() == b.ours.argmax() for a, b in both], by["dense"]))
    moved = [np.abs((b.ours - a.ours) - (b.ours - a.ours).mean()).max() for a, b in both]
    return [*cells, f"{np.median(moved):.2g}", str(len(both))]


def _rate(hits: Sequence[bool], found: Sequence[Pair]) -> str:
    e = rate(np.array(hits), np.array([p.question for p in found]))
    return interval(e.value, e.low, e.high)


HEADS = (
    "weights", "keys and values there", "questions", "dense: off, median (most)", "dense: same pick",
    "reuse: off, median (most)", "reuse: same pick", "reuse picks dense's, llama.cpp", "reuse picks dense's, kvattn",
    "what reuse moves, kvattn", "n",
)  # fmt: skip


def main() -> None:
    """Print differences and rates (docs/llamacpp.md), as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--questions", type=int, default=24, help="of each set")
    parser.add_argument("--record", type=Path, help="write theirs in fp32, for the tests")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    recorded: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kvattn-") as home:
        for name in ("smollm2-135m", "smollm2-135m-judge"):
            judge = load(name)
            full = written(args.gguf, judge, Path(home) / f"{name}.gguf")
            sides = [("as written out, fp32", full, False), ("as written out, fp32", full, True)]
            if name == "smollm2-135m":
                sides.append(("the GGUF, Q4_1", args.gguf, True))
            known: dict = {}
            for said, path, half in sides:
                llama = Llama(path, half)
                for asked in SETS:
                    prompts = assign(list(load_data(asked, args.questions, SEED)), SEED)
                    prompts = [p for p in prompts if len(judge.compile(p)) < ROOM // 4]
                    found = list(pairs(judge, llama, prompts, known))
                    lines.append(
                        f"| {' | '.join(row((f'{name}, {said}', 'fp16' if half else 'fp32', asked), found))} |"
                    )
                    print(lines[-1], flush=True)
                    if not half:
                        recorded += [
                            {"model": name, "asked": asked, "question": p.question, "method": p.method,
                             "logits": [round(x, 5) for x in p.theirs.tolist()]}
                            for p in found[: 2 * 4]
                        ]  # fmt: skip
                llama.close()
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if args.record:
        args.record.write_text(
            json.dumps({"seed": SEED, "questions": args.questions, "pairs": recorded}, indent=1) + "\n"
        )
    print(text)


if __name__ == "__main__":
    main()
