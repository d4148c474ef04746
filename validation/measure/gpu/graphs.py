"""CUDA graphs: a run recorded once and replayed without the host."""

from __future__ import annotations

import torch

from validation.measure.gpu.case import Run

WARM_UP = 3


def graphed(run: Run) -> Run:
    """Return the replay of a run; its tensors stay where they were when it was recorded.

    Raises
    ------
    NotImplementedError
        If there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise NotImplementedError("CUDA graphs need a CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
