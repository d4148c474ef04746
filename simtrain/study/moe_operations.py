"""Where the time of one layer with experts goes when nothing overlaps: seconds of each kind of operation, forward and backward."""

from __future__ import annotations

from collections import defaultdict

from simtrain.cost.model import CostModel
from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Recorder
from simtrain.graph.template import Op
from simtrain.hardware import Cluster
from simtrain.model import Transformer
from simtrain.systems.moe.deepspeed_moe import DeepSpeedMoE
from simtrain.systems.training import Microbatch

_BY_NAME = (("expert_", "experts"), ("gelu", "experts"), ("swiglu", "experts"), ("gate", "routing"), ("order", "order"), ("combine", "order"))


def operation_seconds(system: DeepSpeedMoE, m: Transformer, b: Microbatch, cluster: Cluster, dtype: str) -> dict[tuple[str, str], float]:
    """Return the time of each kind of operation of one layer, by pass and kind. [s]

    Kinds are the collectives by name, ``experts`` (activation included), ``routing`` (the gate), ``order`` (both permutations)
    and ``attention`` (everything dense). The reduction of the layer's gradients counts in the backward.
    """
    ep = cluster.num_accelerators // system.tp
    r = Recorder(Mesh((("tp", system.tp), ("cp", 1), ("dp", ep), ("pp", 1))), CostModel(cluster, system.software, dtype, m))
    system.layer_forward(r, m, b)
    nbytes = (r.parameters - r.expert_parameters) * r.costs.gradient_bytes
    total: defaultdict[tuple[str, str], float] = defaultdict(float)
    for direction, template in (("forward", r.forward("forward")), ("backward", r.backward("backward"))):
        for op in template.ops:
            total[direction, _kind(op)] += op.seconds + (op.nbytes / op.rate if op.nbytes else 0.0)
    total["backward", "all_reduce"] += r.costs.collective("all_reduce", nbytes, r.group("dp")).seconds
    return dict(total)


def _kind(op: Op) -> str:
    if op.axis:
        return op.name
    return next((kind for prefix, kind in _BY_NAME if op.name.startswith(prefix)), "attention")
