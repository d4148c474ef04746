"""``simtrain list``."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from simtrain.cli.options import Json


class Kind(StrEnum):
    """What ``list`` can list."""

    systems = "systems"
    clusters = "clusters"
    nodes = "nodes"
    accelerators = "accelerators"
    models = "models"
    workloads = "workloads"
    traces = "traces"
    suites = "suites"
    studies = "studies"


def list_command(kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: Json = False) -> None:
    """List what is shipped."""
    from simtrain.study.catalogue import catalogue

    rows = catalogue(kind.value)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from simtrain.report.tables import print_catalogue

    print_catalogue(kind.value, rows)
