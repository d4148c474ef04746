"""``simtrain bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simtrain.cli.files import check_output, write_files


def bench(
    suite: Annotated[str, typer.Argument(help="Shipped name or path of a suite YAML.")],
    system: Annotated[str, typer.Option(help="Put this under test, in all cases that name no system of their own.")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired runs of each case with random draws.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results here, for 'simtrain check'.")] = None,
) -> None:
    """Run a benchmark suite of systems and policies."""
    import time

    from simtrain.report.regression import print_bench
    from simtrain.report.tables import Spinner
    from simtrain.study.bench import bench as bench_api
    from simtrain.study.suite import load_suite

    if out:
        check_output("--out", out)
    chosen = load_suite(suite, system)
    started = time.perf_counter()
    with Spinner() as spinner:
        results = bench_api(chosen, seeds=seeds, progress=spinner.say)
    if out:
        write_files([(out, lambda path: _write(path, results.model_dump_json(indent=1) + "\n"))])
    print_bench(results, time.perf_counter() - started, chosen.budget)
    if out:
        print(f"wrote {out}")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
