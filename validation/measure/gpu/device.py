"""Which device this is, and how fast it runs at the moment."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

INTERVAL = 100
"""Between two readings of nvidia-smi. [ms]"""


def has_cuda() -> bool:
    """Tell whether there is a CUDA device."""
    return torch.cuda.is_available()


class Reading(NamedTuple):
    """Clock of the SMs [MHz], power [W] and temperature [degrees Celsius]; None if unknown."""

    clock: float | None = None
    power: float | None = None
    temperature: float | None = None


class Sampler:
    """Keeps the latest reading of one nvidia-smi that runs beside the measurements; starting it anew for each row would take longer than the row."""

    def __init__(self, device: torch.device) -> None:
        self.latest = Reading()
        self._process: subprocess.Popen[str] | None = None
        if device.type == "cuda" and shutil.which("nvidia-smi"):
            query = ["--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL}"]
            self._process = subprocess.Popen(["nvidia-smi", "-i", "0", *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.latest = reading_of(line)

    def close(self) -> None:
        """End nvidia-smi."""
        if self._process:
            self._process.terminate()
            self._process.wait()


def reading_of(line: str) -> Reading:
    """Return the reading in one line of nvidia-smi; ``[N/A]`` is unknown."""

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    cells = [number(text.strip()) for text in line.split(",")]
    return Reading(*cells) if len(cells) == len(Reading._fields) else Reading()


def description(device: torch.device) -> dict[str, Any]:
    """Return what the measurements were made on and with."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "device": platform.processor() or platform.machine(),
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "host": _processor(), "host_threads": torch.get_num_threads(), "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name, "sms": properties.multi_processor_count, "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}", "l2_bytes": getattr(properties, "L2_cache_size", None),
        }  # fmt: skip
        found["nvidia_smi"] = _nvidia_smi()
    return found


def _nvidia_smi() -> dict[str, str]:
    fields = ["driver_version", "clocks.max.sm", "clocks.max.memory", "clocks.sm", "power.limit", "power.draw", "temperature.gpu", "pcie.link.gen.max"]
    fields += ["pcie.link.width.max", "persistence_mode", "ecc.mode.current"]
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"unavailable": str(error)}
    return dict(zip(fields, (cell.strip() for cell in shown.strip().splitlines()[0].split(","))))


def _processor() -> str | None:
    """Return the name of the host's processor, as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
