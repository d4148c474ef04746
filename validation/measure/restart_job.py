"""A data-parallel job that checkpoints, and in its first life is killed on one rank at a given step."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from validation.measure.program import MLP, Piece
from validation.measure.worker import die_with_parent

HIDDEN, FFN, TOKENS = 512, 1024, 1024
RATE = 1e-3
"""Of gradient descent."""


def main() -> None:
    """Train from the last checkpoint to the last step."""
    die_with_parent()
    task = json.loads(Path(os.environ["SIMTRAIN_TASK"]).read_text())
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['SIMTRAIN_STORE']}", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    layer = Piece(MLP(HIDDEN, FFN))
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(rank))
    saved = Path(task["checkpoint"])
    first = 0
    if saved.exists():
        state = torch.load(saved)
        first = state["step"]
        layer.module.load_state_dict(state["model"])
    dist.barrier()
    with open(os.environ["SIMTRAIN_RESULTS"], "a", buffering=1) as out:

        def say(**line: object) -> None:
            print(json.dumps(line | {"time": time.time()}), file=out)

        say(kind="started", step=first)
        for step in range(first, task["steps"]):
            if rank == 1 and step == task["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            loss = train(layer, x, size)
            say(kind="step", step=step, loss=loss)
            if (step + 1) % task["checkpoint_every"] == 0:
                if rank == 0:
                    save(saved, step + 1, layer)
                dist.barrier()
                say(kind="checkpoint", step=step + 1)
    dist.barrier()
    dist.destroy_process_group()


def train(layer: Piece, x: torch.Tensor, size: int) -> float:
    """Run one step of gradient descent on the mean square of the output; return this rank's loss."""
    layer.zero_gradients()
    y = layer.forward(x)
    layer.backward(y / y.numel())
    for p in layer.module.parameters():
        assert p.grad is not None
        dist.all_reduce(p.grad)
        p.data.sub_(p.grad, alpha=RATE / size)
    return float((y**2).mean())


def save(path: Path, step: int, layer: Piece) -> None:
    """Write a checkpoint beside its place, then move it there: a kill leaves the old or the new one."""
    part = path.with_suffix(".part")
    torch.save({"step": step, "model": layer.module.state_dict()}, part)
    part.replace(path)


if __name__ == "__main__":
    main()
