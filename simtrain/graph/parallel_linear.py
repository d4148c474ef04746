"""Linear layers split over a mesh axis, as Megatron-LM defines them, with or without chunked overlap.

With sequence parallelism (Korthikanti et al. 2022) the activations between the layers are sharded over the
tokens: a column-parallel layer gathers them first, a row-parallel one scatters its output. In backward the
column-parallel layer gathers its saved shard again under the data gradient and reduces the gradient under the
weight gradient, each on the communicator's stream (``LinearWithGradAccumulationAndAsyncCommunication``). Stacks before
that autograd function reduce the gradient after both products, in the backward of a function of its own
(``_CopyToModelParallelRegion``), and so does PyTorch's own: software records with ``hides_input_gradient: false``.

With ``chunks > 1`` the exposed gather or scatter is cut into pieces that run beside the pieces of the product
(MegaScale section 3.2; Wang et al., ASPLOS'23).
"""

from __future__ import annotations

from simtrain.graph.program import Handle, Program
from simtrain.graph.recorder import Recorder


def column_parallel(
    r: Recorder, axis: str, tokens: float, k: int, n: int, name: str, *, is_sequence_parallel: bool, chunks: int = 1, saves: float | None = None,
    is_16bit: bool = False,
) -> None:  # fmt: skip
    """Record ``[tokens, k] x [k, n]`` with ``n`` this rank's columns; the input is replicated or gathered.

    Parameters
    ----------
    tokens
        Rows of the gathered input.
    n
        Output columns on this rank.
    is_sequence_parallel
        Whether the input is sharded over the tokens.
    chunks
        Pieces into which gather and product are cut; 1 runs one after the other.
    saves
        Overrides the bytes kept of the input. [B]
    is_16bit
        Keep the product in 16 bits where the run casts to less.
    """
    nbytes = tokens * k * r.costs.dtype_bytes
    kept = (nbytes / r.size(axis) if is_sequence_parallel else nbytes) if saves is None else saves
    r.parameters += k * n

    def forward(p: Program) -> None:
        if is_sequence_parallel:
            gather_then_matmul(r, p, axis, nbytes, (tokens, k, n, name), chunks, is_16bit)
        else:
            r.emit_matmul(p, tokens, k, n, name, is_16bit=is_16bit)

    def backward(p: Program) -> None:
        hides = r.costs.software.hides_input_gradient or chunks > 1
        gathered = r.emit_collective(p, "all_gather", axis, nbytes, is_async=hides) if is_sequence_parallel else None
        r.emit_matmul(p, tokens, n, k, f"{name}.dgrad", is_16bit=is_16bit)
        if hides:
            p.wait(gathered)
        else:
            weight_gradient(p)
        reduced = r.emit_collective(p, "reduce_scatter" if is_sequence_parallel else "all_reduce", axis, nbytes, is_async=hides)
        if hides:
            weight_gradient(p)
            p.wait(reduced)

    def weight_gradient(p: Program) -> None:
        r.emit_matmul(p, k, int(tokens), n, f"{name}.wgrad", is_gradient=True, is_16bit=is_16bit)

    r.record(forward, backward, kept, nbytes + tokens * n * r.costs.dtype_bytes, "input")


def row_parallel(
    r: Recorder, axis: str, tokens: float, k: int, n: int, name: str, *, is_sequence_parallel: bool, chunks: int = 1, saves: float | None = None
) -> None:
    """Record ``[tokens, k] x [k, n]`` with ``k`` this rank's rows; the output is summed or reduce-scattered."""
    nbytes = tokens * n * r.costs.dtype_bytes
    r.parameters += k * n

    def forward(p: Program) -> None:
        if is_sequence_parallel:
            matmul_then_scatter(r, p, axis, nbytes, (tokens, k, n, name), chunks)
        else:
            r.emit_matmul(p, tokens, k, n, name)
            r.emit_collective(p, "all_reduce", axis, nbytes)

    def backward(p: Program) -> None:
        if is_sequence_parallel:
            gather_then_matmul(r, p, axis, nbytes, (tokens, n, k, f"{name}.dgrad"), chunks)
        else:
            r.emit_matmul(p, tokens, n, k, f"{name}.dgrad")
        r.emit_matmul(p, k, int(tokens), n, f"{name}.wgrad", is_gradient=True)

    inner = tokens * k * r.costs.dtype_bytes
    r.record(forward, backward, inner if saves is None else saves, nbytes + inner, "input")


def gather_then_matmul(r: Recorder, p: Program, axis: str, nbytes: float, product: tuple[float, int, int, str], chunks: int, is_16bit: bool = False) -> None:
    """Emit an all-gather and the product that reads it, piece ``i + 1`` gathered while piece ``i`` is multiplied."""
    m, k, n, name = product
    if chunks == 1:
        r.emit_collective(p, "all_gather", axis, nbytes)
        r.emit_matmul(p, m, k, n, name, is_16bit=is_16bit)
        return
    handles = [r.emit_collective(p, "all_gather", axis, nbytes / chunks, is_async=True) for _ in range(chunks)]
    for handle in handles:
        p.wait(handle)
        r.emit_matmul(p, m, k, n, name, pieces=chunks, is_16bit=is_16bit)


def matmul_then_scatter(r: Recorder, p: Program, axis: str, nbytes: float, product: tuple[float, int, int, str], chunks: int) -> None:
    """Emit a product and the reduce-scatter of its output, piece ``i - 1`` scattered while piece ``i`` is multiplied."""
    m, k, n, name = product
    handles: list[Handle | None] = []
    for _ in range(chunks):
        r.emit_matmul(p, m, k, n, name, pieces=chunks)
        handles.append(r.emit_collective(p, "reduce_scatter", axis, nbytes / chunks, is_async=chunks > 1))
    for handle in handles:
        p.wait(handle)
