"""The same study on a local Ray cluster gives the same table. Needs the extra ``ray``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simtrain.errors import InputError
from simtrain.study.sweep import sweep

STUDY: dict[str, Any] = {
    "name": "small", "system": "dense/megatron_lm", "workload": "gpt_tiny", "cluster": "dgx_a100_40gb_ib", "settings": {"cluster.num_nodes": 1},
    "axes": {"tp": [1, 2, 16], "global_batch_size": [16, 32]}, "baseline": {"tp": 1},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_files(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    try:
        sweep(STUDY, out=tmp_path / "ray", executor="ray", workers=2)
        with pytest.raises(InputError, match="unknown metric"):
            sweep(STUDY | {"metrics": ["step_tim"]}, executor="ray", workers=2)
    finally:
        ray.shutdown()
    sweep(STUDY, out=tmp_path / "local", workers=1)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / w).iterdir()} for w in ("ray", "local"))
    assert one == two


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("simtrain.study.sweep.executors.import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'simtrain\[ray\]'"):
        sweep(STUDY, executor="ray")
