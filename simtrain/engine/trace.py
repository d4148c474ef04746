"""What happened: when each row of a graph was ready, started and ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from simtrain.graph.graph import Floats, Graph, Ints


@dataclass
class Trace:
    """Times of every row of a graph.

    Parameters
    ----------
    ready
        When the row itself could have started; a rendezvous starts at its last member's. [s]
    start, end
        [s]
    last
        Row of the same rendezvous that was ready last, i.e. whom the others waited for.
    """

    graph: Graph
    ready: Floats
    start: Floats
    end: Floats
    last: Ints
    fidelity: str
    engine: str

    @property
    def makespan(self) -> float:
        """End of the last row. [s]"""
        return float(self.end.max()) if len(self.end) else 0.0

    def digest(self) -> str:
        """Return a hash of kinds, streams, starts and ends of the representative ranks' rows.

        Folded and unfolded runs of one step have the same digest, and so have executors that agree.
        """
        g = self.graph
        chosen = np.flatnonzero(g.is_representative[g.rank])
        order = chosen[np.lexsort((chosen, g.rank_class[g.rank[chosen]]))]
        hasher = hashlib.sha256()
        for array in (g.rank_class[g.rank[order]], g.table.kind[g.op[order]], self.start[order], self.end[order]):
            hasher.update(np.ascontiguousarray(array).tobytes())
        names = "\n".join(f"{op.stream} {op.name}" for op in g.table.ops)
        hasher.update(hashlib.sha256(names.encode()).digest())
        return hasher.hexdigest()[:16]
