"""Steps whose ranks differ: one program per rank, in the verbs of torch.distributed.

Where :class:`simtrain.graph.recorder.Recorder` records what all ranks of an axis do alike and derives the backward pass,
a :class:`RankProgram` states everything one rank does, forward and backward. The k-th collective of one rank meets the
k-th of every other, and the k-th send to a peer its k-th receive from here, as in torch.distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from simtrain.cost.collective import Transfer, bytes_sent
from simtrain.graph.grid import to_grid
from simtrain.graph.mesh import Mesh
from simtrain.graph.step import Do, Instruction, RankClass, Step, Wait
from simtrain.graph.template import LINKS_OF, Kind, Link, Op, Template

AXIS = "dp"
"""Axis along which the ranks are laid, and under which their communication is reported."""

Price = Callable[[str, float, int], Transfer]
"""Cost of a communication: kind (of a collective, ``send_recv``, or ``exchange`` for one message of several that are posted together), bytes of the
larger buffer on one rank, members."""


@dataclass
class RankProgram:
    """What one rank does.

    Parameters
    ----------
    rank, size
        Place among the ranks.
    price
        Cost of communication.
    queues
        Collectives that run at once; the backend gives them to its workers in turn. Sends and receives bypass them.
    """

    rank: int
    size: int
    price: Price
    queues: int = 1
    instructions: list[Instruction] = field(default_factory=list[Instruction])
    _issued: dict[object, int] = field(default_factory=dict[object, int])
    _keys: int = 0

    def compute(self, name: str, seconds: float, flops: float = 0.0) -> None:
        """Run a kernel on the main stream. [s], [FLOP]"""
        self.instructions.append(Do(Template(name, [Op(name, Kind.COMPUTE, "compute", to_grid(seconds), flops=flops)], (0,))))

    def aside(self, name: str, seconds: float, stream: str) -> int:
        """Start something on another stream, such as a copy to disk; give the handle to :meth:`wait`. [s]"""
        return self._start(Template(name, [Op(name, Kind.COPY, stream, to_grid(seconds))], (0,)), None)

    def idle(self, name: str, seconds: float) -> None:
        """Do nothing on the main stream for a while, such as sleeping or waiting for an environment. [s]"""
        self.wait(self.aside(name, seconds, f"{name} wait"))

    def collective(self, kind: str, nbytes: float, *, async_op: bool = False) -> int | None:
        """Start a collective among all ranks; returns a handle if asynchronous.

        Parameters
        ----------
        kind
            A kind of :func:`simtrain.cost.collective.collective`.
        nbytes
            The larger buffer on one rank, as nccl-tests counts it. Where ranks differ, give all of them the largest. [B]
        async_op
            Go on beside it.
        """
        if self.size == 1:
            return None
        number = self._count("collective")
        t = self.price(kind, nbytes, self.size)
        op = Op(
            kind, Kind.COLLECTIVE, f"{AXIS} {number % self.queues}", to_grid(t.latency), t.nbytes, t.rate, AXIS, LINKS_OF.get(t.link, Link.NONE),
            payload=bytes_sent(kind, nbytes, self.size), holds_sms=True, under_compute=t.under_compute,
        )  # fmt: skip
        handle = self._start(Template(kind, [op], (0,)), ("collective", number))
        return handle if async_op else self.wait(handle)

    def isend(self, nbytes: float, peer: int, tag: int | None = None) -> int:
        """Start to send to a peer; it moves once the peer has posted its receive. With a tag it is matched by that, in any order. [B]"""
        return self._message(nbytes, self.rank, peer, tag)

    def irecv(self, nbytes: float, peer: int, tag: int | None = None) -> int:
        """Post a receive from a peer. [B]"""
        return self._message(nbytes, peer, self.rank, tag)

    def send(self, nbytes: float, peer: int) -> None:
        """Send to a peer and wait for it. [B]"""
        self.wait(self._message(nbytes, self.rank, peer, None))

    def recv(self, nbytes: float, peer: int) -> None:
        """Receive from a peer and wait for it. [B]"""
        self.wait(self._message(nbytes, peer, self.rank, None))

    def exchange(self, received: Mapping[int, float], sent: Mapping[int, float]) -> list[int]:
        """Post receives from and sends to several peers, as ``batch_isend_irecv`` does, by peer; the handles are waited for by the caller. [B]"""
        into = [self._message(nbytes, peer, self.rank, None, "exchange") for peer, nbytes in received.items() if nbytes]
        return into + [self._message(nbytes, self.rank, peer, None, "exchange") for peer, nbytes in sent.items() if nbytes]

    def wait(self, *handles: int | None) -> None:
        """Let the main stream go on after these."""
        self.instructions += [Wait(handle) for handle in handles if handle is not None]

    def _message(self, nbytes: float, source: int, target: int, tag: int | None, kind: str = "send_recv") -> int:
        is_send = source == self.rank
        number = self._count((source, target)) if tag is None else tag
        t = self.price(kind, nbytes, 2)
        links = Link.NIC_OUT if is_send else Link.NIC_IN
        stream = (f"send {target}" if is_send else f"recv {source}") + ("" if tag is None else f" tag {tag}")
        name = "send" if is_send else "recv"
        op = Op(
            name, Kind.SEND if is_send else Kind.RECV, stream, to_grid(t.latency), t.nbytes, t.rate, AXIS, links, payload=nbytes if is_send else 0.0,
            holds_sms=True, under_compute=t.under_compute,
        )  # fmt: skip
        return self._start(Template(name, [op], (0,)), ("message", source, target, number, tag is None))

    def _start(self, template: Template, message: object) -> int:
        self._keys += 1
        self.instructions.append(Do(template, self._keys, message=message))
        return self._keys

    def _count(self, what: object) -> int:
        number = self._issued.get(what, 0)
        self._issued[what] = number + 1
        return number


def step_of(programs: Sequence[RankProgram]) -> Step:
    """Return the step that all ranks' programs make up."""
    classes = [RankClass({AXIS: p.rank}, 1, p.instructions) for p in programs]
    return Step(Mesh(((AXIS, len(programs)),)), classes, 0.0, 0.0, 0.0, "fp32")
