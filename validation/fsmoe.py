"""The FSMoE paper's tables from the simulator: ``python validation/fsmoe.py [--every N] [--workers N] [--plot F.svg]``.

Prints table 2 (seconds of each operation of one layer), the means over the 1,458 layers of both testbeds, and the end-to-end
comparisons, each beside what the paper prints. Nothing of these tables is an input; what is calibrated are the fits of figure
5, in ``hardware/nodes/fsmoe_*.yaml`` and ``hardware/kernels``.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import simtrain
from simtrain.hardware import Cluster
from simtrain.report import style
from simtrain.report.speedup_plot import Spread, plot_spreads
from simtrain.study.moe_layers import LayerTime, grid, layer_degrees, layer_times
from simtrain.study.moe_operations import operation_seconds
from simtrain.systems.moe.deepspeed_moe import DeepSpeedMoE
from simtrain.systems.moe.fsmoe import FSMoE
from simtrain.systems.moe.pipemoe_lina import PipeMoELina
from simtrain.systems.moe.tutel import Tutel
from simtrain.systems.training import Microbatch
from simtrain.workload import Pretraining

TABLE_2 = Path(__file__).parent / "published" / "fsmoe_table2.csv"
SEQ_LENS = {"fsmoe_a": (512, 1024, 2048), "fsmoe_b": (256, 512, 1024)}
SYSTEMS: dict[str, Callable[[int], DeepSpeedMoE]] = {
    "serial": lambda tp: DeepSpeedMoE(tp=tp, is_sequence_parallel=True),
    "Tutel": lambda tp: Tutel(tp=tp),
    "Tutel-Improved": lambda tp: Tutel(tp=tp, dp_overlap="layer"),
    "PipeMoE+Lina": lambda tp: PipeMoELina(tp=tp),
    "FSMoE-No-IIO": lambda tp: FSMoE(tp=tp, overlaps_lanes=False),
    "FSMoE": lambda tp: FSMoE(tp=tp),
}
"""Schedules of the layer study, by the paper's names; "serial" is its figure 3a."""

PUBLISHED = {"fsmoe_a": {"Tutel-Improved": 1.09, "FSMoE": 1.18}, "fsmoe_b": {"FSMoE-No-IIO": 1.16, "FSMoE": 1.22}}
"""Mean speed-ups over Tutel on 1,458 layers: the paper's abstract and table 5."""

DIFFERENT_DEGREES = 912 / 1458
COLOURS = {"serial": style.SYSTEMS["moe/deepspeed_moe"], "Tutel-Improved": style.SYSTEMS["moe/tutel"], "PipeMoE+Lina": "#DDCC77",
           "FSMoE-No-IIO": "#882255", "FSMoE": style.SYSTEMS["moe/fsmoe"]}  # fmt: skip


def table_2() -> None:
    """Print each operation of table 2, in milliseconds."""
    rows = list(csv.DictReader(TABLE_2.read_text().splitlines()))
    print("Table 2, one layer, B = 4, L = 1,024 [ms]: predicted / published")
    for cluster, model in dict.fromkeys((row["cluster"], row["model"]) for row in rows):
        place = Cluster.load(cluster)
        job = Pretraining.load(model, {"model.moe.experts": place.num_nodes})
        system = SYSTEMS["serial"](place.node.num_accelerators)
        found = operation_seconds(system, job.model, Microbatch(4, 1024, 4096.0), place, job.dtype)
        for direction in ("forward", "backward"):
            mine = {r["operation"]: (1e3 * found[direction, r["operation"]], float(r["milliseconds"])) for r in rows
                    if (r["cluster"], r["model"], r["pass"]) == (cluster, model, direction)}  # fmt: skip
            mine["sum"] = (sum(p for p, _ in mine.values()), sum(q for _, q in mine.values()))
            print(f"  {cluster} {model} {direction}: " + ", ".join(f"{k} {p:.2f}/{q:g} ({p / q - 1:+.0%})" for k, (p, q) in mine.items()))


def _times(task: tuple[str, str, int]) -> list[LayerTime]:
    cluster, name, every = task
    place = Cluster.load(cluster)
    return layer_times(SYSTEMS[name](place.node.num_accelerators), grid(SEQ_LENS[cluster])[::every], place)


def layer_study(every: int, workers: int, plot: str) -> None:
    """Print mean speed-ups over Tutel on the layers of both testbeds, and draw their spread."""
    begin = time.perf_counter()
    tasks = [(cluster, name, every) for cluster in SEQ_LENS for name in SYSTEMS]
    with ProcessPoolExecutor(workers) as pool:
        found = dict(zip([task[:2] for task in tasks], pool.map(_times, tasks), strict=True))
    spreads: list[Spread] = []
    for cluster in SEQ_LENS:
        seconds = {name: np.array([t.seconds for t in found[cluster, name]]) for name in SYSTEMS}
        over = {name: (seconds["Tutel"] / seconds[name]).tolist() for name in SYSTEMS if name != "Tutel"}
        published = PUBLISHED[cluster]
        print(f"{cluster}: mean speed-up over Tutel on {len(seconds['Tutel']):,} layers (paper)")
        for name, values in over.items():
            print(f"  {name:16s} {np.mean(values):.3f} ({published.get(name, '-')})")
        print(f"  FSMoE over Tutel-Improved {np.mean(seconds['Tutel-Improved'] / seconds['FSMoE']):.3f}")
        rounded = [t.degrees for t in found[cluster, "FSMoE"]]
        place = Cluster.load(cluster)
        whole = layer_degrees(FSMoE(tp=place.node.num_accelerators, degree_choices=tuple(range(1, 17))), grid(SEQ_LENS[cluster])[::every], place)
        shares = [np.mean([forward != backward for forward, backward in degrees]) for degrees in (rounded, whole)]
        print(f"  degrees that differ between forward and backward: of 1, 2, 4, 8 {shares[0]:.1%}, of 1 to 16 {shares[1]:.1%} ({DIFFERENT_DEGREES:.1%})")
        spreads.append(Spread(f"Testbed {cluster[-1].upper()}: {len(seconds['Tutel']):,} layers", over, published))
    print(f"layer study: {time.perf_counter() - begin:.0f} s on {workers} processes")
    if plot:
        note = "full marks: predicted means, hollow: published"
        plot_spreads(spreads, plot, title="FSMoE and its baselines, layer by layer", note=note, baseline="Tutel", colours=COLOURS)


class EndToEnd(NamedTuple):
    """One comparison of the paper's section 6.4: the mean over models."""

    name: str
    cluster: str
    models: Sequence[str]
    settings: dict[str, Any]
    over_deepspeed: float | None = None
    over_tutel: float | None = None
    over_lina: float | None = None


ALL, SMALL = ("gpt2_xl_moe", "mixtral_7b_moe", "mixtral_22b_moe"), ("gpt2_xl_moe", "mixtral_7b_moe")
END_TO_END = (
    EndToEnd("fig. 7: P=48, L=1,024", "fsmoe_a", ALL, {}, 2.72, 1.19),
    EndToEnd("fig. 7: P=48, L=512", "fsmoe_a", ALL, {"seq_len": 512}, 2.17, 1.17),
    EndToEnd("fig. 7: P=16, L=1,024", "fsmoe_a", ALL, {"cluster.num_nodes": 2}, 2.25, 1.20),
    EndToEnd("fig. 8: PP=2, GPipe", "fsmoe_a", ALL, {"pp": 2, "schedule": "gpipe"}, 2.46, None, 1.12),
    EndToEnd("B: L=256", "fsmoe_b", SMALL, {"seq_len": 256}),
)
"""The paper does not list the models of each mean: all that it trains on the testbed are taken. Batch of figure 8: 4 microbatches, assumed."""


def step_times(case: EndToEnd, model: str) -> dict[str, float]:
    """Return the step time of each system. [s]"""
    place = Cluster.load(case.cluster)
    replicas = case.settings.get("cluster.num_nodes", place.num_nodes) // case.settings.get("pp", 1)
    settings = {"tp": place.node.num_accelerators, "workload.model.moe.experts": replicas, "global_batch_size": replicas, **case.settings}
    if "pp" in settings:
        settings["global_batch_size"] = 4 * replicas
    if case.cluster == "fsmoe_b" and model == "mixtral_7b_moe":
        settings["workload.model.layers"] = 7
    systems = {name: f"moe/{name}" for name in ("deepspeed_moe", "tutel", "pipemoe_lina", "fsmoe")}
    return {name: simtrain.run(system, model, case.cluster, settings=settings).metrics["step_time"] for name, system in systems.items()}


def end_to_end() -> None:
    """Print FSMoE's speed-ups over the others, means over models, and the range of Tutel over DeepSpeed-MoE."""
    print("end to end, FSMoE over others, mean over models: predicted (published)")
    tutel: list[float] = []
    for case in END_TO_END:
        times = [step_times(case, model) for model in case.models]
        tutel += [t["deepspeed_moe"] / t["tutel"] for t in times]
        shown = (("DeepSpeed-MoE", "deepspeed_moe", case.over_deepspeed), ("Tutel", "tutel", case.over_tutel), ("PipeMoE+Lina", "pipemoe_lina", case.over_lina))
        print(f"  {case.name:24s}" + ", ".join(f"{n} {np.mean([t[key] / t['fsmoe'] for t in times]):.2f} ({paper or '-'})" for n, key, paper in shown))
    print(f"  Tutel over DeepSpeed-MoE: {min(tutel):.2f} to {max(tutel):.2f} (1.16 to 2.59)")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every N-th layer of the grid")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", default="", help="picture of the layer study, .svg or .png")
    options = parser.parse_args()
    table_2()
    layer_study(options.every, options.workers, options.plot)
    end_to_end()


if __name__ == "__main__":
    main()
