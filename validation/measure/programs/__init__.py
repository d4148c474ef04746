"""The measured programs, one file each."""

from __future__ import annotations

from validation.measure.program import Program
from validation.measure.programs.checkpoint import Checkpoint
from validation.measure.programs.collectives import Collectives
from validation.measure.programs.compression import Compression
from validation.measure.programs.data_parallel import DataParallel
from validation.measure.programs.moe import MixtureOfExperts
from validation.measure.programs.packing import Packing
from validation.measure.programs.pipeline import Pipeline
from validation.measure.programs.ring_attention import RingAttention
from validation.measure.programs.slow_rank import SlowRank
from validation.measure.programs.tensor_parallel import TensorParallel
from validation.measure.programs.ulysses import Ulysses
from validation.measure.programs.zero3 import Zero3

PROGRAMS: dict[str, type[Program]] = {
    cls.name: cls
    for cls in (
        Collectives, DataParallel, Zero3, TensorParallel, Pipeline, RingAttention, Ulysses, MixtureOfExperts, Packing, Compression, SlowRank, Checkpoint,
    )
}  # fmt: skip
