"""Dense in low precision against dense in float32, and what a token is computed with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import at_home, engine, random_model, short_prompt, tokenizer

from kvattn.engine.engine import Engine
from kvattn.engine.plan import dense_plan
from kvattn.judge.judge import Judge
from kvattn.judge.precision import agreement

PROMPTS = [short_prompt("What is 2 + 3?", ["5", "It is 6.", "five"])]


def test_float32_agrees_with_itself():
    found = agreement(engine("llama"), PROMPTS)
    assert (found.same, found.of, found.scores, found.rows) == (3, 3, 0.0, 0.0)


@pytest.mark.parametrize("shape", ["llama", "mistral-window"])
def test_low_precision_is_held_against_the_same_weights_in_float32(shape):
    low = Engine(at_home(random_model(shape, torch.bfloat16)), tokenizer())
    found = agreement(low, PROMPTS)
    same, apart = 0, []
    high = random_model(shape, torch.bfloat16).float()
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        layout = Judge(low).compile(PROMPTS[0].ordered(order))
        run = low.execute([dense_plan(layout, low.layers)])[0]
        with torch.no_grad():
            want = layout.scores(high(layout.token_ids[None]).logits[0, -1:])[0]
        got = layout.scores(run.logits)[0]
        same += int(np.argmax(got) == np.argmax(want))
        apart.append(float(np.abs(got - want).mean()))
    assert found.same == same
    assert found.scores == pytest.approx(np.mean(apart), rel=0.02)
    assert 0 < found.rows < 0.05
    assert low.dtype == torch.bfloat16


def test_the_meter_counts_the_experts_that_a_token_is_routed_to():
    width, inner, kv = 32, 64, 16
    attention = 2 * width * width + 2 * width * kv
    expert, norms = 3 * width * inner, 2 * width
    for shape, used, router in (("llama", 1, 0), ("mixtral", 2, 4 * width)):
        made = engine(shape)
        assert made.meter.weights == attention + used * expert + router + norms
        layout = Judge(made).compile(PROMPTS[0])
        made.execute([dense_plan(layout, made.layers)])
        assert made.meter.multiplications == made.meter.weights * len(layout) * made.layers
