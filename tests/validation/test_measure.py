"""Starting and ending measured ranks: who failed is named, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from validation.measure import network
from validation.measure.launch import RankError, run_ranks

ROOT = Path(__file__).parents[2]
MESSAGE = 1_000_000
STUB = "tests.validation.rank_stub"

needs_network = pytest.mark.skipif(bool(network.unavailable()), reason=f"shaped networks: {network.unavailable()}")


def namespaces(prefix: str = "st") -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in shown.splitlines() if line.startswith(prefix)}


def stubs() -> list[str]:
    shown = subprocess.run(["pgrep", "-f", STUB], capture_output=True, text=True, check=False).stdout
    return shown.split()


def test_what_ranks_write_comes_back_by_rank() -> None:
    assert run_ranks(STUB, 2, {"ranks": ["write", "write"]}) == [[{"rank": "0"}], [{"rank": "1"}]]


def test_a_rank_that_dies_is_named_with_its_last_words_and_the_others_are_ended() -> None:
    with pytest.raises(RankError, match=r"rank 1 ended with code 1: cannot bind 10\.77\.0\.9: address in use"):
        run_ranks(STUB, 2, {"ranks": ["hang", "die"]})
    assert not stubs()


def test_a_rank_that_hangs_is_named_and_ended() -> None:
    with pytest.raises(RankError, match="rank 1 hangs: no result for 2 s"):
        run_ranks(STUB, 2, {"ranks": ["write", "hang"]}, hang=2.0)
    assert not stubs()


@needs_network
def test_a_network_carries_what_its_ranks_send_and_leaves_nothing_behind() -> None:
    with network.shaped(2, 100e6) as made:
        assert len(namespaces(made.prefix)) == 3
        before = made.sent_bytes(1)
        server = "import socket; s = socket.create_server(('10.77.0.1', 5000)); print('up', flush=True); c, _ = s.accept()\nwhile c.recv(65536): pass"
        client = f"import socket; s = socket.create_connection(('10.77.0.1', 5000)); s.sendall(bytes({MESSAGE}))"
        with subprocess.Popen([*made.enter(0), sys.executable, "-c", server], stdout=subprocess.PIPE) as listening:
            assert listening.stdout is not None
            listening.stdout.readline()
            subprocess.run([*made.enter(1), sys.executable, "-c", client], check=True)
        assert MESSAGE < made.sent_bytes(1) - before < 1.1 * MESSAGE
        prefix = made.prefix
    assert not namespaces(prefix)


@needs_network
def test_two_networks_at_once_do_not_disturb_each_other() -> None:
    with network.shaped(2, 100e6) as first:
        with network.shaped(2, 100e6) as second:
            assert first.prefix != second.prefix
        assert len(namespaces(first.prefix)) == 3


@needs_network
def test_a_failure_inside_removes_the_network() -> None:
    with pytest.raises(RankError), network.shaped(2, 100e6) as made:
        run_ranks(STUB, 2, {"ranks": ["die", "hang"]}, made)
    assert not namespaces(made.prefix)


@needs_network
def test_what_a_killed_run_leaves_is_removed_by_the_next() -> None:
    program = (
        "import time\nfrom validation.measure import network\n"
        "with network.shaped(2, 1e8) as made:\n    print(made.prefix, flush=True)\n    time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as victim:
        assert victim.stdout is not None
        prefix = victim.stdout.readline().strip()
        assert len(namespaces(prefix)) == 3
        victim.send_signal(signal.SIGKILL)
    assert namespaces(prefix)
    assert prefix in network.remove_stale()
    assert not namespaces(prefix)


@needs_network
def test_an_interrupted_run_removes_its_network_and_ranks() -> None:
    program = (
        "from validation.measure import network\nfrom validation.measure.launch import run_ranks\n"
        "with network.shaped(2, 1e8) as made:\n    print(made.prefix, flush=True)\n"
        f"    run_ranks('{STUB}', 2, {{'ranks': ['hang', 'hang']}}, made)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as victim:
        assert victim.stdout is not None
        prefix = victim.stdout.readline().strip()
        deadline = time.monotonic() + 30
        while len(stubs()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        victim.send_signal(signal.SIGINT)
        victim.wait(timeout=30)
    assert not namespaces(prefix)
    assert not stubs()
