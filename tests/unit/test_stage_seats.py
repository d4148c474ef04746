"""Which stages of a pipeline sit alike, and what of a placement matters to its costs."""

from __future__ import annotations

import pytest

from simtrain.cost.collective import collective
from simtrain.cost.model import CostModel
from simtrain.cost.placement import Group
from simtrain.cost.span import Span
from simtrain.graph.mesh import Mesh
from simtrain.hardware import Cluster, Software
from simtrain.model import Transformer
from simtrain.systems.reuse import Reuse

SELENE = Cluster.load("selene_a100")
"""Full fat tree, 20 nodes of 8 accelerators below a set of leaves."""


def costs(cluster: Cluster) -> CostModel:
    return CostModel(cluster, Software.load("megatron_2023"), "bf16", Transformer.load("gpt3_175b"))


def test_stages_whose_expert_groups_sit_differently_are_not_alike() -> None:
    """Nodes 16-31 and 32-47: both data-parallel groups cross leaves, at 20 and 40; the first 8 nodes do so in the former alone."""
    mesh = Mesh((("tp", 8), ("cp", 1), ("dp", 16), ("pp", 3)), (("ep", 8, 8),))
    seats = Reuse().seats(costs(SELENE), mesh, 3)
    assert seats.inside == (0, 1, 2)
    assert Reuse().seats(costs(SELENE), Mesh(mesh.axes), 3).inside == (0, 1, 1)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "all_to_all", "broadcast"])
def test_above_leaves_that_are_not_oversubscribed_their_number_does_not_matter(kind: str) -> None:
    costs_by_leaves = {collective(kind, 1e9, Span(256, 1, leaves), SELENE) for leaves in range(2, 15)}
    assert len(costs_by_leaves) == 1
    assert costs(SELENE).span(Group(0, ((64, 256),))) == Span(256, 1, 2)


def test_above_oversubscribed_leaves_their_number_matters() -> None:
    narrow = Cluster.load("a100_fat_tree_4to1")
    count = narrow.num_accelerators // 8
    assert costs(narrow).span(Group(0, ((8, count),))).leaves == -(-count // narrow.topology.nodes_per_leaf) > 2


def test_seats_of_other_meshes_have_other_numbers() -> None:
    reuse, cost = Reuse(), costs(SELENE)
    meshes = [Mesh((("tp", 8), ("cp", 1), ("dp", dp), ("pp", 2))) for dp in (1, 2, 1)]
    first, second, third = (reuse.seats(cost, mesh, 2) for mesh in meshes)
    assert first.number == third.number != second.number
