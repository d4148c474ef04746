"""Pictures: files that repeat, text that stays text and does not overlap, colours that mean the same everywhere."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from simtrain.engine.categories import CATEGORIES
from simtrain.engine.execute import execute
from simtrain.errors import InputError
from simtrain.graph.mesh import Mesh
from simtrain.graph.program import Program
from simtrain.graph.step import Do, RankClass, Step
from simtrain.hardware import Cluster
from simtrain.report import style
from simtrain.report.plots import _short_percent, draw_comparison, plot_comparison, plot_result
from simtrain.report.rollout_plot import averaged
from simtrain.report.step_plot import _fill, draw_result
from simtrain.study.compare import Comparison, Row
from simtrain.study.result import Result
from simtrain.study.settings import Scenario
from simtrain.systems.base import Case, Claim, System
from simtrain.workload import Pretraining

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

CASES = {f"175B on {gpus:,} GPUs, batch {batch:,}": gpus for gpus, batch in ((256, 768), (1024, 768), (3072, 6144), (12288, 6144))}


class Base(System):
    title: ClassVar[str] = "Base-LM (Conf'20)"


class Better(Base):
    title: ClassVar[str] = "Better-LM (Conf'24)"
    baseline = Base
    claims: ClassVar[tuple[Claim, ...]] = tuple(Claim("[1] Table 2", m, Case(case, "", ""), 1.0, 1.0) for case in CASES for m in ("step_time", "mfu"))


def result(system: type[System], seconds: float, stages: int = 2) -> Result:
    """Every stage computes two thirds forward and one third backward, microbatch by microbatch."""
    classes: list[RankClass] = []
    for stage in range(stages):
        program: list[Do] = []
        for microbatch in range(8):
            for name, share in (("forward", 2 / 3), ("backward", 1 / 3)):
                p = Program(name)
                p.compute(f"{name} kernel", share * seconds / 8, flops=1e12)
                program.append(Do(p.template(), microbatch=microbatch, chunk=0))
        classes.append(RankClass({"pp": stage}, 8, [*program], {"parameters": 30e9, "activations": 10e9}))
    mesh = Mesh((("tp", 8), ("cp", 1), ("dp", 1), ("pp", stages)))
    cluster = Cluster.load("megascale_a100", {"num_nodes": stages})
    step = Step(mesh, classes, 4096.0, 1e16, 1e16, "bf16")
    return Result(Scenario("x", system(), Pretraining.load("gpt3_175b"), cluster), execute(step, cluster), {"fidelity": "fair", "unfold": [], "seed": 0})


def comparison() -> Comparison:
    rows: list[Row] = []
    for i, case in enumerate(CASES):
        slow, fast = result(Base, 40.0 / (i + 1)), result(Better, 30.0 / (i + 1))
        published = {"step_time": 41.0 / (i + 1), "mfu": 0.4}
        is_missing = i == 2
        rows.append(Row(case, "dense/megatron_lm", True, None if is_missing else slow, published, "out of memory: 90 GB" if is_missing else ""))
        rows.append(Row(case, "dense/megascale", False, fast, {"step_time": 30.0 / (i + 1), "mfu": 0.5}))
    return Comparison(tuple(rows), "Better and Base")


def texts(path: Path) -> list[str]:
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """All text that is drawn, legends included, with the place it takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text().strip() and t.get_visible()]
    page = figure.bbox
    found = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in shown]
    return [(text, box) for text, box in found if box.overlaps(page)]


def assert_legible(figure: Figure) -> None:
    drawn = boxes(figure)
    assert len(drawn) > 5
    for i, (text, box) in enumerate(drawn):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, f"{text!r} is cut off"
        for other, other_box in drawn[i + 1 :]:
            assert not box.shrunk(0.98, 0.9).overlaps(other_box), f"{text!r} lies over {other!r}"


def test_comparison_is_text_with_units_errors_and_source(tmp_path: Path) -> None:
    path = tmp_path / "c.svg"
    plot_comparison(comparison(), str(path))
    found = texts(path)
    for wanted in ("Base-LM and Better-LM", "Step time [s]", "MFU [%]", "published", "OOM", "256 GPUs", "12,288 GPUs", "compute"):
        assert wanted in found
    assert "175B  |  published values: Better-LM (Conf'24), Table 2  |  red: beyond the tolerance of the claim" in found
    assert f"{100 * (40 / 41 - 1):+.1f} %" in found
    assert "speed-up 1.33x" in found
    assert "paper 1.37x" in found  # 41 / 30


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_equal_content_gives_equal_files(tmp_path: Path, ending: str) -> None:
    paths = [tmp_path / f"{name}.{ending}" for name in ("a", "b")]
    for path in paths:
        plot_comparison(comparison(), str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    for path in paths:
        plot_result(result(Better, 3.0), str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_svg_bears_no_date(tmp_path: Path) -> None:
    path = tmp_path / "r.svg"
    plot_result(result(Better, 3.0), str(path))
    assert "<dc:date>" not in path.read_text(encoding="utf-8")


def test_the_users_own_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    plot_comparison(comparison(), str(tmp_path / "a.svg"))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        plot_comparison(comparison(), str(tmp_path / "b.svg"))
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_comparison_is_legible() -> None:
    with style.styled():
        assert_legible(draw_comparison(comparison()))


def test_single_case_without_published_values_is_legible() -> None:
    rows = tuple(Row(row.case, row.system, row.is_baseline, row.result) for row in comparison().rows[:2])
    with style.styled():
        assert_legible(draw_comparison(Comparison(rows, "one case")))


@pytest.mark.parametrize("stages", [1, 2, 12])
def test_result_is_legible(stages: int) -> None:
    with style.styled():
        assert_legible(draw_result(result(Better, 3.0, stages)))


def test_result_shows_stages_memory_and_microbatches(tmp_path: Path) -> None:
    path = tmp_path / "r.svg"
    plot_result(result(Better, 3.0), str(path))
    found = texts(path)
    for wanted in ("One step of Better-LM", "pp 0  x8", "pp 1  x8", "time [s]", "forward  2.000 s, 66.7 %", "backward  1.000 s, 33.3 %"):
        assert wanted in found
    assert "Peak memory of the fullest stage: 40.0 of 85.9 GB" in found  # 80 GiB


def test_many_stages_are_thinned_out_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "r.svg"
    plot_result(result(Better, 3.0, 40), str(path))
    found = texts(path)
    assert "The whole step, 16 of 40 stages" in found
    assert {"pp 0  x8", "pp 39  x8"} <= set(found)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.svg or \.png"):
        plot_result(result(Better, 3.0), str(tmp_path / "r.jpg"))


def test_columns_of_pixels_are_filled_in_proportion() -> None:
    seconds = np.zeros((len(CATEGORIES), 2))
    seconds[CATEGORIES.index("forward")] = [1.0, 2.0]
    seconds[CATEGORIES.index("tp")] = [1.0, 0.0]
    image = _fill(seconds, 10)
    colours = {name: tuple(int(style.CATEGORIES[name][i : i + 2], 16) for i in (1, 3, 5)) for name in ("forward", "tp")}
    columns = [[tuple(pixel) for pixel in image[:, column].tolist()] for column in range(2)]
    assert columns[0] == [colours["tp"]] * 5 + [colours["forward"]] * 5
    assert columns[1] == [colours["forward"]] * 10


# -- colours -------------------------------------------------------------------------------------------------


def test_listed_systems_keep_their_colour_in_any_company() -> None:
    for name, colour in style.SYSTEMS.items():
        assert style.system_colours([name])[name] == colour
        assert style.system_colours(["my/own", name, "another"])[name] == colour
    # There are more systems than colours that can be told apart; those of one family meet in one picture.
    families = {name: name.partition("/")[0] for name in style.SYSTEMS}
    assert len({(families[name], colour) for name, colour in style.SYSTEMS.items()}) == len(style.SYSTEMS)


def test_unlisted_systems_take_a_colour_by_name_alone() -> None:
    alone = style.system_colours(["my/own"])["my/own"]
    assert alone == style.system_colours(["dense/megatron_lm", "my/own"])["my/own"]
    # `printf my/own | b2sum -l 64` says 425117ee6a55799a, which is 4 modulo the 10 colours.
    assert alone == "#AA4499"
    assert len({*style.system_colours(["a", "b", "c", "d", "e"]).values()}) == 5, "no two systems of one picture share a colour"


def test_the_order_of_systems_does_not_change_their_colours() -> None:
    names = ["z", "y", "x", "dense/megascale", "w"]
    assert style.system_colours(names) == style.system_colours(names[::-1])


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("category", [*style.CATEGORIES])
def test_numbers_can_be_read_on_every_colour(category: str) -> None:
    """WCAG 2.2, success criterion 1.4.11: a contrast of 3 to 1."""
    lightness = sorted([_luminance(style.CATEGORIES[category]), _luminance(style.ink_on(category))])
    assert (lightness[1] + 0.05) / (lightness[0] + 0.05) >= 3


def test_forward_and_backward_differ_without_hue() -> None:
    lightness = sorted(_luminance(style.CATEGORIES[c]) for c in ("forward", "backward"))
    assert (lightness[1] + 0.05) / (lightness[0] + 0.05) >= 2


def test_a_crowded_step_function_is_drawn_by_its_means() -> None:
    rng = np.random.default_rng(1)
    times, values = np.cumsum(rng.exponential(size=5000)), rng.integers(0, 9, 5000).astype(float)
    edges, means = averaged(times, values, most=100)
    assert len(edges) == len(means) == 101
    assert np.sum(np.diff(edges) * means[:-1]) == pytest.approx(np.sum(np.diff(times) * values[:-1]), rel=1e-9)
    assert averaged(times, values, most=5000)[0] is times


def test_a_paper_that_ran_out_of_memory_where_we_do_not_is_a_miss() -> None:
    class Missed(Base):
        baseline = Base
        claims: ClassVar[tuple[Claim, ...]] = (Claim("[1]", "peak_memory", Case("a", "", ""), float("inf")),)

    ours = Row("a", "x:Missed", False, result(Missed, 10.0), {"peak_memory": float("inf")})
    theirs = Row("a", "x:Base", True, result(Base, 12.0))
    with style.styled():
        figure = draw_comparison(Comparison((theirs, ours), "Missed"))
        words = {text.get_text(): text.get_color() for ax in figure.axes for text in ax.texts}
        assert words["paper:\nOOM"] == style.ALARM
        assert any("red: beyond the tolerance of the claim" in text.get_text() for text in figure.texts)


def test_errors_of_neighbouring_bars_are_short() -> None:
    assert [_short_percent(error) for error in (0.0412, -0.0994, 0.1, -0.304, 1.294)] == ["+4.1 %", "-9.9 %", "+10 %", "-30 %", "+129 %"]
