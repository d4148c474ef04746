"""A network that can be set: ranks in network namespaces, joined by a bridge, each egress shaped by a token bucket.

Optionally the ranks sit in two racks, each with a bridge of its own; the link between the bridges is shaped both ways, and may be oversubscribed.

Every name carries the prefix of its run, and a file under the temporary folder says which process owns it. A run that
was killed leaves namespaces behind; the next run finds files of dead owners and removes what they name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BURST = 256 * 1024
"""Bucket of each shaper. It has to exceed one segmentation-offload packet of 64 kB, or the kernel splits every packet in software. [B]"""
REGISTRY = Path(tempfile.gettempdir()) / "simtrain-networks"
"""One file per live network: its owner and its prefix."""


class NetworkError(RuntimeError):
    """The network could not be set up."""


def unavailable() -> str:
    """Return why shaped networks cannot be had here; empty if they can."""
    if os.geteuid() != 0:
        return "not root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found (package iproute2)"
    probe = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return f"ip netns: {probe.stderr.strip()}" if probe.returncode else ""


@dataclass
class Network:
    """Namespaces of one run."""

    prefix: str
    size: int
    rate: float
    """Of each egress on the wire; 0 is unshaped. [bit/s]"""
    uplink: float = 0.0
    """Of the link between two racks, each way; 0 for a single bridge. [bit/s]"""
    made: list[str] = field(default_factory=list[str])

    def namespace(self, rank: int) -> str:
        """Return the namespace of a rank."""
        return f"{self.prefix}n{rank}"

    def enter(self, rank: int) -> list[str]:
        """Return the words that put a command into a rank's namespace."""
        return ["ip", "netns", "exec", self.namespace(rank)]

    def sent_bytes(self, rank: int) -> int:
        """Return the bytes that a rank's interface has sent. [B]"""
        shown = _run([*self.enter(rank), "cat", "/sys/class/net/eth0/statistics/tx_bytes"], check=False)
        return int(shown or 0)


@contextmanager
def shaped(size: int, rate: float, uplink: float = 0.0) -> Generator[Network, None, None]:
    """Make a network of ``size`` ranks whose egress passes ``rate``, and remove it on every way out.

    Parameters
    ----------
    size
        Ranks; each gets a namespace with one interface ``eth0``.
    rate
        On the wire; a token bucket counts headers too. [bit/s]
    uplink
        Puts the ranks into two racks, the first half in the one and the rest in the other, joined by a link of this rate; 0 puts all on one bridge.
        It is oversubscribed if the ranks of a rack may send more. [bit/s]

    Raises
    ------
    NetworkError
        If a command of iproute2 fails.
    """
    remove_stale()
    network = Network(f"st{uuid.uuid4().hex[:6]}", size, rate, uplink)
    REGISTRY.mkdir(exist_ok=True)
    entry = REGISTRY / f"{network.prefix}.json"
    entry.write_text(json.dumps({"pid": os.getpid(), "started": _start_time(os.getpid()), "prefix": network.prefix}))
    try:
        _build(network)
        yield network
    finally:
        remove(network.prefix)
        entry.unlink(missing_ok=True)


def _build(network: Network) -> None:
    switch = f"{network.prefix}sw"
    _run(["ip", "netns", "add", switch])
    for bridge in ("br0", "br1") if network.uplink else ("br0",):
        _run(["ip", "-n", switch, "link", "add", bridge, "type", "bridge"])
        _run(["ip", "-n", switch, "link", "set", bridge, "up"])
    for rank in range(network.size):
        space, port = network.namespace(rank), f"p{rank}"
        bridge = "br1" if network.uplink and rank >= network.size / 2 else "br0"
        _run(["ip", "netns", "add", space])
        _run(["ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch])
        _run(["ip", "-n", switch, "link", "set", port, "master", bridge, "up"])
        _run(["ip", "-n", space, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", "eth0"])
        for device in ("lo", "eth0"):
            _run(["ip", "-n", space, "link", "set", device, "up"])
        if network.rate:
            _shape(space, "eth0", network.rate)
    if network.uplink:
        _run(["ip", "-n", switch, "link", "add", "up0", "type", "veth", "peer", "name", "up1"])
        for end in (0, 1):  # what leaves one rack enters an end and leaves it shaped towards the other
            _run(["ip", "-n", switch, "link", "set", f"up{end}", "master", f"br{end}", "up"])
            _shape(switch, f"up{end}", network.uplink)


def _shape(space: str, device: str, rate: float) -> None:
    _run(["tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{rate:.0f}bit", "burst", str(BURST), "latency", "400ms"])


def remove(prefix: str) -> None:
    """Kill what runs in the namespaces of a prefix and delete them; interfaces and shapers go with them."""
    for space in _namespaces(prefix):
        for pid in _run(["ip", "netns", "pids", space], check=False).split():
            subprocess.run(["kill", "-9", pid], capture_output=True, check=False)
        _run(["ip", "netns", "del", space], check=False)


def remove_stale() -> list[str]:
    """Remove networks whose owner has died; return their prefixes."""
    removed: list[str] = []
    for entry in sorted(REGISTRY.glob("*.json")) if REGISTRY.is_dir() else []:
        try:
            owner = json.loads(entry.read_text())
        except (OSError, ValueError):  # another run is writing or removing it
            continue
        if _start_time(owner["pid"]) != owner["started"]:
            remove(owner["prefix"])
            entry.unlink(missing_ok=True)
            removed.append(owner["prefix"])
    return removed


def _start_time(pid: int) -> str:
    """Return when a process started, in kernel ticks; empty if it is dead. A process number alone may have been given again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _namespaces(prefix: str) -> Iterable[str]:
    return [line.split()[0] for line in _run(["ip", "netns", "list"], check=False).splitlines() if line.startswith(prefix)]


def _run(command: list[str], *, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
