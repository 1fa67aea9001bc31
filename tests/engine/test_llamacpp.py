"""Label logits as llama.cpp computed them (benchmarks/llamacpp.py, fp32), dense and with candidates shifted and copied:
an independent implementation of naive-linked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.llamacpp import ours
from kvattn.judge.judge import load
from kvattn.questions import load as load_data
from kvattn.questions.orders import assign

RECORDED = json.loads(Path(__file__).with_name("llamacpp.json").read_text())


@pytest.mark.slow
def test_reuse_gives_the_logits_of_llama_cpp(smollm2: str) -> None:
    judge, pairs = load(smollm2), RECORDED["pairs"]
    prompts = assign(list(load_data(RECORDED["asked"], 2, RECORDED["seed"])), RECORDED["seed"])
    for i, prompt in enumerate(prompts):
        mine = ours(judge, prompt)
        for pair in pairs[2 * i : 2 * i + 2]:
            off = mine[pair["method"]] - np.array(pair["logits"])
            assert np.abs(off).max() < 5e-4, pair["method"]
