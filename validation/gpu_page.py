"""Writes the table and the picture of one GPU into ``validation/gpu.md``: ``python -m validation.gpu_page``."""

from __future__ import annotations

from pathlib import Path

from simtrain.report.gpu_table import Shown, markdown, plot_gpu_runs
from simtrain.validate.gpu_runs import Compared, compared, repeat_errors
from validation.readme_tables import replace

FOLDER = Path(__file__).resolve().parent
DATA = FOLDER / "data"
DEVICES = {"H100": "gpu_h100", "H200": "gpu_h200"}
"""Files of measurements by device; ``NAME_repeat`` holds a second measurement of some cases."""
PAGE = FOLDER / "gpu.md"
PICTURE = FOLDER / "gpu_runs.png"
NOT_YET = "Not measured yet. The programs are tested on CPU tensors."


def measured() -> dict[str, Compared]:
    """Return what there is, by device."""
    return {device: compared(DATA / f"{name}.csv") for device, name in DEVICES.items() if (DATA / f"{name}.csv").exists()}


def body(devices: dict[str, Compared]) -> str:
    """Return the generated part of the page."""
    if not devices:
        return NOT_YET
    return markdown([Shown(name, found.summary, found.about, found.memory_errors, _repeats(name, found)) for name, found in devices.items()])


def _repeats(device: str, found: Compared) -> dict[tuple[str, str], float]:
    again = DATA / f"{DEVICES[device]}_repeat.csv"
    return repeat_errors(found.frame, compared(again).frame) if again.exists() else {}


def main() -> None:
    """Write the generated part, and the picture if there is something to show."""
    devices = measured()
    PAGE.write_text(replace(PAGE.read_text(), "gpu", body(devices)))
    if devices:
        plot_gpu_runs([(found.frame, found.about) for found in devices.values()], str(PICTURE))


if __name__ == "__main__":
    main()
