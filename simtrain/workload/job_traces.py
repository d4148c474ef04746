"""Traces of jobs: written out, read from a file, or generated from a seed."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from simtrain.engine.jobs import Job
from simtrain.errors import InputError
from simtrain.rng import stream
from simtrain.spec import Beside, NamedSpec, Spec
from simtrain.units import Seconds
from simtrain.workload.job_trace_formats import FORMATS, Row

LARGEST_JOB = 1_000_000


class JobGenerator(Spec):
    """Independent jobs: gamma gaps between arrivals, lognormal run times, sizes and priorities by share.

    Each job draws from its own stream, so that another number of jobs leaves the first ones as they are. Size and run time are
    independent, and rounded to whole seconds as in public traces.
    """

    num_jobs: int = Field(gt=0, le=1_000_000)
    mean_gap: Seconds = Field(gt=0)
    """Mean time between arrivals. [s]"""
    burstiness: float = Field(default=1.0, gt=0, le=100)
    """Coefficient of variation of the gaps: 1 is a Poisson process, more comes in bursts."""
    gpus: dict[int, float] = Field(min_length=1)
    """Share of jobs by their GPUs; shares need not add up to 1."""
    median_duration: Seconds = Field(gt=0)
    """[s]"""
    duration_sigma: float = Field(default=0.0, ge=0, le=10)
    """Standard deviation of the logarithm of run times; 0: all are equal."""
    longest: Seconds | None = None
    """Run times are cut here. [s]"""
    priorities: dict[int, float] = Field(default={0: 1.0}, min_length=1)
    """Share of jobs by priority; larger is more urgent."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if min(self.gpus) < 1 or max(self.gpus) > LARGEST_JOB:
            raise ValueError(f"gpus: a job has 1 to {LARGEST_JOB:,} GPUs; mend the key {min(self.gpus) if min(self.gpus) < 1 else max(self.gpus)}")
        for name, shares in (("gpus", self.gpus), ("priorities", self.priorities)):
            if min(shares.values()) < 0 or sum(shares.values()) <= 0:
                raise ValueError(f"{name}: shares must be at least zero, and not all of them zero")
        return self

    def rows(self, seed: int) -> list[Row]:
        """Draw the trace of a seed."""
        sizes, priorities = _Shares(self.gpus), _Shares(self.priorities)
        shape = self.burstiness**-2
        rows: list[Row] = []
        submit = 0.0
        for i in range(self.num_jobs):
            draw = stream(seed, "job", i)
            submit += draw.gamma(shape, self.mean_gap / shape)
            seconds = self.median_duration * 2.718281828459045 ** (self.duration_sigma * draw.standard_normal())
            size, urgency = draw.random(2)
            seconds = min(seconds, self.longest) if self.longest is not None else seconds
            rows.append(Row(float(round(submit)), sizes.at(size), float(max(1, round(seconds))), priorities.at(urgency)))
        return rows


class _Shares:
    """Inverse of a discrete distribution."""

    def __init__(self, shares: dict[int, float]) -> None:
        self.values = sorted(shares)
        self.upto = list(accumulate(shares[value] for value in self.values))

    def at(self, uniform: float) -> int:
        return self.values[min(bisect_right(self.upto, uniform * self.upto[-1]), len(self.values) - 1)]


class JobTrace(NamedSpec):
    """Jobs for a cluster. Exactly one of ``table``, ``file`` and ``generate`` says which."""

    folder: ClassVar[str] = "workloads/job_traces"

    table: str = ""
    """The jobs as CSV text with the columns submit_s, gpus, duration_s and, if wanted, priority."""
    file: Annotated[str, Beside()] = ""
    """Path of a trace, from the folder of the file that names it."""
    format: Literal["csv", "swf", "philly", "helios", "tiresias"] = "csv"
    """Format of the file, see :mod:`simtrain.workload.job_trace_formats`."""
    generate: JobGenerator | None = None
    """Draw the jobs from a seed."""
    max_jobs: int | None = Field(default=None, gt=0)
    """Take only the first rows."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("table", "file", "generate") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of table, file and generate ({' and '.join(given) or 'none'} given)")
        if self.format != "csv" and not self.file:
            raise ValueError("format: belongs to file; remove it")
        return self

    @property
    def is_random(self) -> bool:
        """Whether another seed gives another trace."""
        return self.generate is not None

    def jobs(self, seed: int) -> tuple[Job, ...]:
        """Return the jobs.

        Parameters
        ----------
        seed
            Of the generator; a table or a file ignores it.

        Raises
        ------
        InputError
            If the file cannot be read, or holds no job.
        """
        rows = self._rows(seed)[: self.max_jobs]
        if not rows:
            raise InputError(f"{self.file or self.name}: holds no job with GPUs and a run time; give another trace")
        return tuple(Job(i, *row) for i, row in enumerate(rows))

    def _rows(self, seed: int) -> list[Row]:
        if self.generate is not None:
            return self.generate.rows(seed)
        if self.table:
            return FORMATS["csv"](self.table, f"{self.name}: table")
        try:
            text = Path(self.file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        except FileNotFoundError:
            raise InputError(f"{self.file}: no such trace; mend 'file' in {self.name}") from None
        except OSError as error:
            raise InputError(f"{self.file}: cannot be read ({error.strerror})") from None
        return FORMATS[self.format](text, self.file)
