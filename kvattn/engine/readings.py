"""What captured rows, caches and residual streams say: block matrix, KV drift and its rank, logit lens of the labels,
direct logit attribution by slot."""

from __future__ import annotations

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from kvattn.engine import parts
from kvattn.engine.capture import Captured, Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.influence import Edges
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan
from kvattn.errors import KvattnError


def computed_queries(plan: KVPlan) -> Wanted:
    """What to capture for a block matrix: every token that is computed through all layers."""
    return Wanted(queries=tuple(torch.nonzero(plan.depth == plan.layers)[:, 0].tolist()))


def block_matrix(captured: Captured, layout: PromptLayout) -> Float[Tensor, "layers heads segments segments"]:
    """Entry a, b: attention that goes to segment b, mean over the captured queries in segment a. All segments are
    included, so rows sum to one. Kept tokens have no queries: rows of segments without any are NaN."""
    layers, heads, segments = captured.mass.shape[1:]
    owner = layout.segment_of[list(captured.queries)]
    out = torch.full((layers, heads, segments, segments), torch.nan)
    for a in range(segments):
        mine = owner == a
        if bool(mine.any()):
            out[:, :, a] = reduce(captured.mass[mine], "query layer head segment -> layer head segment", "mean")
    return out


def uniform_matrix(
    plan: KVPlan, layer: int = 0, window: int | None = None, head: int = 0
) -> Float[Tensor, "segments segments"]:
    """The block matrix of a head that attends evenly to all it may see: what a block matrix is read against.

    window: the layer's sliding window (`Geometry.windows`), None for full attention
    head:   which one, where the plan's visibility differs by head
    """
    member = torch.nn.functional.one_hot(plan.layout.segment_of, len(plan.layout.segments)).float()
    seen = Edges(plan, layer, window, head).read(member)  # [query, segment], how many tokens of each
    even = seen / seen.sum(-1, keepdim=True)
    count = member.sum(0)[:, None]
    mean = einsum(member, even, "query a, query b -> a b") / count.clamp_min(1)
    return torch.where(count > 0, mean, torch.nan)


def kv_drift(
    execution: Execution, dense: Execution
) -> tuple[Float[Tensor, "layers tokens"], Float[Tensor, "layers tokens"]]:
    """How far keys and values are from what dense computes at the same place: for each token the Euclidean distance
    over heads and channels, over dense's norm. Both executions are of one layout, with their caches kept."""
    if not torch.equal(execution.plan.layout.token_ids, dense.plan.layout.token_ids):
        raise KvattnError("drift compares executions of one and the same layout")
    out = []
    for mine, theirs in zip(execution.cache(), dense.cache(), strict=True):
        n = len(dense.plan.layout)
        a, b = mine[:, :, :n].float(), theirs[:, :, :n].float()
        out.append((a - b).norm(dim=(1, 3)) / b.norm(dim=(1, 3)).clamp_min(1e-12))
    return out[0].cpu(), out[1].cpu()


def drift_spectrum(
    execution: Execution, dense: Execution, segment: str, of: str = "values"
) -> Float[Tensor, "layers ranks"]:
    """Singular values of the drift of one segment, [layers, min(tokens, kv heads x dim)], as shares of the drift's
    squared norm (zero where there is no drift): how low its rank is, layer by layer."""
    which = {"keys": 0, "values": 1}[of]
    layout = dense.plan.layout
    s = next((x for x in layout.segments if x.name == segment), None)
    if s is None:
        raise KvattnError(f"no segment {segment!r}; this layout has {', '.join(layout.names)}")
    change = (execution.cache()[which] - dense.cache()[which])[:, :, s.start : s.stop].float()
    flat = rearrange(change, "layer head token dim -> layer token (head dim)")
    energy = torch.linalg.svdvals(flat).square()
    total = energy.sum(-1, keepdim=True)
    return torch.where(total > 0, energy / total.clamp_min(1e-30), 0.0).cpu()


def logit_lens(engine: Engine, captured: Captured, token_ids: tuple[int, ...]) -> Float[Tensor, "queries stages ids"]:
    """Logits of some tokens read from the residual stream before the first layer and after each, through the final
    norm (nostalgebraist 2020). The last stage equals the model's own logits. Needs Wanted(residual=True)."""
    if captured.residual is None:
        raise KvattnError("the residual stream was not kept; ask for it with Wanted(residual=True)")
    with torch.inference_mode():
        normed = parts.last_norm(engine.model)(captured.residual.to(engine.device, engine.dtype))
        return parts.logits(engine.model, normed)[..., list(token_ids)].cpu()


def attribution(
    engine: Engine, captured: Captured, token_ids: tuple[int, ...]
) -> Float[Tensor, "queries layers heads segments ids"]:
    """Direct logit attribution: what each head moves from each segment straight into the logit of each token, the
    final norm's scale held at its actual value (Elhage et al. 2021). What passes through later layers is not in it.

    Needs Wanted(residual=True, moved=True). Raises KvattnError for models that norm or multiply attention's output
    before adding it, whose last norm takes the mean away, or that scale or cap their logits: heads do not write into
    those one by one."""
    if captured.residual is None or captured.moved is None:
        raise KvattnError("attribution needs Wanted(residual=True, moved=True)")
    if not parts.adds_heads_one_by_one(engine.model):
        raise KvattnError("this model norms or multiplies the output of attention as a whole: no attribution by head")
    norm, head = parts.last_norm(engine.model), engine.model.get_output_embeddings()
    with torch.inference_mode():
        last = captured.residual[:, -1]
        here = last.to(engine.device, engine.dtype)
        normed, own = norm(here), parts.logits(engine.model, norm(here)[:, None])[:, 0, list(token_ids)].cpu()
        if torch.allclose(norm(here.float() + here.float().std()), norm(here.float()), rtol=1e-2):
            raise KvattnError("this model's last norm takes the mean of all away: no attribution by head")
        normed = normed.float().cpu()
        scale = torch.where(last.abs() > 1e-6, normed / last, 0.0)  # the norm's gain over its root mean square
        directions = head.weight[list(token_ids)].float().cpu()
        if not torch.allclose(normed @ directions.T, own, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
            raise KvattnError("this model scales, shifts or caps its logits: no attribution by head")
        sums = "query layer head segment hidden, query hidden, id hidden -> query layer head segment id"
        return einsum(captured.moved, scale, directions, sums)
