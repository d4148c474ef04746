"""Writes the table and the picture of one GPU into ``validation/README.md``: ``python -m validation.gpu_page``."""

from __future__ import annotations

from pathlib import Path

from simtrain.report.gpu_table import markdown, plot_gpu_runs
from simtrain.validate.gpu_runs import GpuRuns, compare, memory_errors, read_gpu_runs, summary
from validation.readme_tables import replace

FOLDER = Path(__file__).resolve().parent
MEASURED = FOLDER / "data" / "gpu_runs.csv"
PICTURE = FOLDER / "gpu_runs.png"
NOT_YET = "Not measured yet: there is no `validation/data/gpu_runs.csv`. The programs are tested on CPU tensors."


def body() -> tuple[str, GpuRuns | None]:
    """Return the generated part of the page, and what it was made from."""
    if not MEASURED.exists():
        return NOT_YET, None
    runs = read_gpu_runs(MEASURED)
    frame = compare(runs)
    return markdown(summary(frame), runs.about, memory_errors(frame)), runs


def main() -> None:
    """Write the generated part, and the picture if there is something to show."""
    text, runs = body()
    page = FOLDER / "README.md"
    page.write_text(replace(page.read_text(), "gpu", text))
    if runs is not None:
        plot_gpu_runs(compare(runs), runs.about, str(PICTURE))


if __name__ == "__main__":
    main()
