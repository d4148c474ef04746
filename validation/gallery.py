"""Draws every picture of ``reports/gallery`` anew and writes the page that shows them: ``python -m validation.gallery [NAME ...]``.

Each picture is made by the one command that stands under it, some two minutes for all; with names, only those. Pictures that take
longer, or measurements, are made by the programs that the page names and only shown.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from simtrain import spec

REPORTS = Path(__file__).parents[1] / "reports"
STUDIES = (
    "nic_dense", "nic_dense_moe", "oversubscription", "nvlink_domain", "accelerators_equal_cost", "accelerators_equal_power", "llama3_405b_scale",
    "cost_to_train", "checkpoint_interval", "spares", "rl_split",
)  # fmt: skip


class Picture(NamedTuple):
    """One entry of the page."""

    question: str
    command: str
    """Without ``simtrain`` or ``python``; the picture is written to ``NAME.svg``, or into the folder NAME by a study."""
    is_drawn: bool = True
    """Drawn by this program."""


SYSTEMS = {
    "megascale": Picture("Where does a step go, beside what the paper prints?", "simtrain compare dense/megascale --plot megascale.svg"),
    "megascale_step": Picture("What do the stages of a MegaScale step do?", "simtrain run dense/megascale --plot megascale_step.svg"),
    "megatron_lm_step": Picture(
        "And those of Megatron-LM?",
        "simtrain run dense/megatron_lm --workload gpt3_175b_megascale --cluster megascale_a100 --set cluster.num_nodes=32 --set tp=8 --set pp=8 "
        "--set vpp=6 --set zero=1 --plot megatron_lm_step.svg",
    ),
    "ulysses": Picture("DeepSpeed-Ulysses beside Megatron-LM with long sequences", "simtrain compare long_context/ulysses --plot ulysses.svg"),
    "ring_self_attention": Picture(
        "Ring Self-Attention beside tensor parallelism on P100s", "simtrain compare long_context/ring_self_attention --plot ring_self_attention.svg"
    ),
    "areal": Picture("Asynchronous RL: what do rollouts wait for?", "simtrain run rl/areal --plot areal.svg"),
    "llama3_goodput": Picture("Where do 54 days on 16,384 GPUs go?", "simtrain run resilience/llama3 --seeds 5 --plot llama3_goodput.svg"),
    "easy": Picture(
        "Which jobs wait under EASY backfilling, and are GPUs idle meanwhile?",
        "simtrain run scheduling/easy --workload tiresias_60 --cluster dgx_a100_40gb_ib --set cluster.num_nodes=2 --plot easy.svg",
    ),
    "fsmoe_layers": Picture("FSMoE on the 1,458 layers of its grid, two testbeds", "python validation/fsmoe.py --plot fsmoe_layers.svg", is_drawn=False),
}  # fmt: skip
SIMULATOR = {
    "growth": Picture("What does size cost the simulator?", "python -m validation.growth --plot growth.svg", is_drawn=False),
}


def pictures() -> dict[str, Picture]:
    """Return all entries, in the order of the page."""
    studies = {name: Picture(_question(name), f"simtrain sweep {name} --out {name}") for name in STUDIES}
    return {**studies, **SYSTEMS, **SIMULATOR}


def _question(study: str) -> str:
    path = spec.data_root() / "workloads" / "studies" / f"{study}.yaml"
    return str(spec.read_yaml(path, path.name)["question"])


def draw(name: str, picture: Picture) -> None:
    """Run the command of a picture in an empty folder and keep what it draws."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", *shlex.split(picture.command)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        made = Path(folder, name, "plot.svg") if Path(folder, name).is_dir() else Path(folder, f"{name}.svg")
        shutil.move(made, REPORTS / "gallery" / f"{name}.svg")


def page(entries: dict[str, Picture]) -> str:
    """Return the page in Markdown."""
    lines = [
        "# Gallery", "", "Every picture with the one command that draws it; written by `python -m validation.gallery`. Measurements against predictions:",
        "[published runs](published.md), [torch programs and GPUs](../validation/README.md).", "",
    ]  # fmt: skip
    for name, picture in entries.items():
        lines += [f"## {picture.question}", "", "```text", picture.command, "```", "", f"![{picture.question}](gallery/{name}.svg)", ""]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Draw what was asked for, and write the page."""
    entries = pictures()
    for name in names or [name for name, picture in entries.items() if picture.is_drawn]:
        print(f"{name}: {entries[name].command}", flush=True)
        draw(name, entries[name])
    (REPORTS / "README.md").write_text(page(entries), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
