"""On paper, nothing measured: a 70B judge with a prompt of 128K tokens on a node of eight H100.

    python -m benchmarks.paper

Assumed: the shape of Llama 3.1 70B in bf16; 989 TFLOP/s and 3.35 TB/s a GPU (NVIDIA's data sheet, dense), of which
matrices and attention reach 40 % and copies 70 %; weights and cache split evenly over the node and all GPUs at work at
once (tensor parallel). The last column is of layers spread over the GPUs, of which one works at a time. kvattn does
the latter alone. Kept blocks lie in GPU memory; fresh tokens are spread evenly over the prompt.
"""

from __future__ import annotations

from benchmarks import kit

LAYERS, HEADS, KV_HEADS, DIM, HIDDEN, INNER = 80, 64, 8, 128, 8192, 28672
TOKENS, SEGMENTS, BYTES = 2**17, 16, 2
GPUS, FLOPS, BANDWIDTH, REACHED, COPIED = 8, 989e12, 3.35e12, 0.4, 0.7
GIB = 2**30


def forward_flops(fresh: float) -> float:
    """Two a multiply-add: matrices of every fresh token, attention of it to half the prompt on average."""
    matrices = HIDDEN * DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * INNER
    return 2 * LAYERS * fresh * (matrices + 2 * HEADS * DIM * TOKENS / 2)


def main() -> None:
    """Two tables."""
    args = kit.arguments(__doc__)
    report = kit.Report("paper", __doc__, args.out)
    kv = 2 * LAYERS * KV_HEADS * DIM * BYTES * TOKENS

    def compute(flops: float) -> list[str]:
        seconds = flops / (GPUS * FLOPS * REACHED)
        return [f"{flops:.2e} FLOP", f"{seconds:.3g} s", f"{seconds * GPUS:.3g} s"]

    def copy(moved: float) -> list[str]:
        seconds = moved / (GPUS * BANDWIDTH * COPIED)
        return [f"{moved / GIB:.0f} GiB", f"{seconds:.2g} s", f"{seconds * GPUS:.2g} s"]

    kept = 0.9 * kv
    keys = kv / 2
    rows = [
        ["dense prefill", *compute(forward_flops(TOKENS))],
        ["reuse, 90 % kept: its forward", *compute(forward_flops(0.1 * TOKENS))],
        ["reuse, 90 % kept: blocks read, moved, written", *copy(2 * kept)],
        ["captured row: keys read again, in fp32 once", *copy(keys + 2 * 2 * keys)],
        ["24 orders, dense", *compute(24 * forward_flops(TOKENS))],
        ["24 orders, dense, shared beginnings (64 of 96 blocks)", *compute(16 * forward_flops(TOKENS))],
    ]
    report.table("Time", ["what", "work", "all GPUs at once", "one GPU at a time"], rows)
    weights = LAYERS * (HIDDEN * DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * INNER) * BYTES
    row, pattern = LAYERS * HEADS * TOKENS * 4, LAYERS * HEADS * TOKENS**2 * BYTES
    rows = [
        ["weights of the layers", f"{weights / GIB:.0f} GiB"],
        ["the cache, one prompt", f"{kv / GIB:.0f} GiB"],
        ["slot mass of the decision row, fp32", f"{LAYERS * HEADS * SEGMENTS * 4 / 2**20:.1f} MiB"],
        ["the decision row itself, fp32 (dense keeps it while it looks for sinks)", f"{row / GIB:.1f} GiB"],
        ["keys of one layer in fp32, while its row is made", f"{KV_HEADS * DIM * TOKENS * 4 / GIB:.2f} GiB"],
        ["mask of 1,024 queries, while their chunk runs", f"{1024 * TOKENS * BYTES / GIB:.2f} GiB"],
        ["all patterns in bf16, as `output_attentions` would return them", f"{pattern / 2**40:.0f} TiB"],
    ]
    report.table("Memory, over the whole node", ["what", "size"], rows)


if __name__ == "__main__":
    main()
