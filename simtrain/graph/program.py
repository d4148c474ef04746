"""Issuing operations in the order one rank executes them, as a CUDA program would.

The *frontier* is what the next operation on the main stream has to wait for: its predecessor there and every
handle that was waited on since. A communication issued now starts after the frontier; a blocking one becomes
the frontier.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simtrain.cost.collective import Transfer
from simtrain.graph.grid import to_grid
from simtrain.graph.template import LINKS_OF, Kind, Link, Op, Template

Handle = int
"""Position of an asynchronous operation; given to :meth:`Program.wait`."""


@dataclass
class Program:
    """Collects the operations of one template.

    Parameters
    ----------
    name
        Name of the template.
    """

    name: str
    ops: list[Op] = field(default_factory=list[Op])
    frontier: set[int] = field(default_factory=set[int])

    def compute(self, name: str, seconds: float, flops: float = 0.0, stream: str = "compute", kind: Kind = Kind.COMPUTE) -> Handle:
        """Issue a blocking operation of the main stream."""
        deps = tuple(sorted(i for i in self.frontier if self.ops[i].stream != stream))
        self.ops.append(Op(name, kind, stream, to_grid(seconds), flops=flops, deps=deps))
        self.frontier = {len(self.ops) - 1}
        return len(self.ops) - 1

    def aside(self, name: str, seconds: float, stream: str, kind: Kind, flops: float = 0.0) -> Handle:
        """Issue an operation on another stream after the frontier, and go on."""
        self.ops.append(Op(name, kind, stream, to_grid(seconds), flops=flops, deps=self._frontier_other(stream)))
        return len(self.ops) - 1

    def communicate(
        self, name: str, axis: str, transfer: Transfer, payload: float, *, is_async: bool = False, holds_sms: bool = True, stream: str = "",
        after: Handle | None = None,
    ) -> Handle | None:  # fmt: skip
        """Issue a collective on the communicator's own stream; blocking unless ``is_async``.

        It starts after the frontier, or after one operation alone, as a CUDA stream that waits for an event.
        """
        if transfer.seconds == 0.0:
            return None
        stream = stream or axis
        self.ops.append(
            Op(
                name,
                Kind.COLLECTIVE,
                stream,
                to_grid(transfer.latency),
                transfer.nbytes,
                transfer.rate,
                axis,
                LINKS_OF.get(transfer.link, Link.NONE),
                0.0,
                payload,
                self._frontier_other(stream) if after is None else (after,) * (self.ops[after].stream != stream),
                holds_sms,
            )
        )
        handle = len(self.ops) - 1
        if not is_async:
            self.frontier = {handle}
        return handle

    def wait(self, handle: Handle | None) -> None:
        """Let everything issued from now on wait for an asynchronous operation."""
        if handle is not None:
            self.frontier.add(handle)

    def template(self, *, leave_open: bool = False) -> Template:
        """Return what was recorded.

        Parameters
        ----------
        leave_open
            Leave asynchronous operations that nobody waited for to the caller, instead of waiting at the end.
        """
        dangling = self.dangling
        if leave_open:
            return Template(self.name, self.ops, tuple(sorted(self.frontier)), dangling)
        return Template(self.name, self.ops, tuple(sorted(self.frontier | set(dangling))))

    @property
    def dangling(self) -> tuple[int, ...]:
        """Asynchronous operations that nothing waits for, yet."""
        waited = {d for op in self.ops for d in op.deps} | self.frontier
        last = {op.stream: i for i, op in enumerate(self.ops)}
        return tuple(sorted(i for i in last.values() if i not in waited and self.ops[i].stream != "compute"))

    def _frontier_other(self, stream: str) -> tuple[int, ...]:
        return tuple(sorted(i for i in self.frontier if self.ops[i].stream != stream))
