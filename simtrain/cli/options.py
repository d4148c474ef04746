"""Options that several commands share, and the reading of ``--set``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from simtrain.errors import InputError


class FidelityOption(StrEnum):
    """How transfers share links."""

    analytic = "analytic"
    fair = "fair"
    flow = "flow"


class EngineOption(StrEnum):
    """Which executor replays the graph."""

    auto = "auto"
    simpy = "simpy"
    compiled = "compiled"


Workload = Annotated[str | None, typer.Option(help="Shipped name or path of a workload YAML.")]
ClusterOption = Annotated[str | None, typer.Option(help="Shipped name or path of a cluster YAML.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of system, workload or cluster; repeatable.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random streams.")]
Fidelity = Annotated[
    FidelityOption, typer.Option(help="analytic: transfers on a link serialise; fair: they share it; flow: they take what their messages take on the fabric.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs under this many seeds, from --seed on; means come with 95 % intervals.")]
Engine = Annotated[EngineOption, typer.Option(help="Executor; auto takes the one that is done first. Both give the same result.")]
Unfold = Annotated[str, typer.Option(metavar="AXES", help="Mesh axes whose ranks are all executed, such as tp,dp.")]
TraceFile = Annotated[Path | None, typer.Option("--trace", help="Write a trace that Perfetto opens.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Write a picture, SVG or PNG by the ending.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def settings_of(pairs: list[str], systems: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs that are meant for some systems; two spellings of one key are refused."""
    from simtrain.study.settings import refuse_repeated
    from simtrain.systems.registry import find

    settings = parse_settings(pairs)
    for name in systems:
        refuse_repeated(find(name), settings)
    return settings


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs.

    Raises
    ------
    InputError
        If a pair has no ``=``, or a key is given twice.
    """
    from simtrain.spec import parse_value

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set {pair}: write KEY=VALUE, e.g. --set tp=8")
        if key in settings:
            raise InputError(f"--set {key}: given twice; remove one")
        settings[key] = parse_value(value)
    return settings
