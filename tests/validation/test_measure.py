"""Starting and ending measured ranks: who failed is named, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from validation.measure import launch, network
from validation.measure.launch import HANG, RankError, run_ranks
from validation.measure.priorities import holding_locks

ROOT = Path(__file__).parents[2]
MESSAGE = 1_000_000
STUB = "tests.validation.rank_stub"

needs_network = pytest.mark.skipif(bool(network.unavailable()), reason=f"shaped networks: {network.unavailable()}")


def namespaces(prefix: str = "st") -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in shown.splitlines() if line.startswith(prefix)}


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark every process that a test starts, so that tests side by side do not see each other's."""
    monkeypatch.setenv("SIMTRAIN_TEST", uuid.uuid4().hex)


def started(what: str) -> list[int]:
    """Return processes that this test has started, by an argument of their command."""
    mark, found = f"SIMTRAIN_TEST={os.environ['SIMTRAIN_TEST']}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if what.encode() in (process / "cmdline").read_bytes().split(b"\0") and mark in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def stubs() -> list[int]:
    return started(STUB)


def comes_true(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait until something holds; return whether it does."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


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


def test_a_stopped_rank_is_named_although_its_peers_are_as_silent() -> None:
    with pytest.raises(RankError, match="rank 1 is stopped: no result for 2 s"):
        run_ranks(STUB, 2, {"ranks": ["hang", "stop"]}, hang=2.0)
    assert not stubs()


def test_silence_is_reported_within_a_minute() -> None:
    assert HANG < 60


def test_ranks_die_with_a_killed_parent() -> None:
    program = f"from validation.measure.launch import run_ranks\nrun_ranks('{STUB}', 2, {{'ranks': ['hang', 'hang']}})"
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}) as parent:
        assert comes_true(lambda: len(stubs()) == 2)
        parent.kill()
    assert comes_true(lambda: not stubs())
    assert list(Path(tempfile.gettempdir()).glob(f"simtrain-ranks-{parent.pid}-*"))
    run_ranks(STUB, 1, {"ranks": ["write"]})
    assert not list(Path(tempfile.gettempdir()).glob(f"simtrain-ranks-{parent.pid}-*"))  # the next run cleans up


def test_a_second_measurement_waits_for_the_first_and_goes_on_when_it_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "TURNS", tmp_path / "turn")
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom validation.measure import launch\nlaunch.TURNS = Path(sys.argv[1])\n"
        "with launch.turn(print):\n    print('mine', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(launch.TURNS)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"mine\n"
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            first.kill()

        with launch.turn(say):
            assert said == ["another run is measuring on this machine; waiting for it"]
    said.clear()
    with launch.turn(said.append):
        assert not said


@pytest.mark.slow
@needs_network
def test_a_rank_that_has_no_interface_is_named() -> None:
    pytest.importorskip("torch")
    with network.shaped(2, 1e9) as made:
        subprocess.run(["ip", "-n", made.namespace(1), "link", "del", "eth0"], check=True)
        with pytest.raises(RankError, match=r"rank 1 ended with code 1: .*eth0"):
            run_ranks("validation.measure.worker", 2, {"configurations": [], "rounds": 0, "block_repeats": 0}, made)
    assert not started("validation.measure.worker")


@pytest.mark.slow
@needs_network
@pytest.mark.parametrize(("number", "message"), [(signal.SIGKILL, "rank 1 ended with code -9"), (signal.SIGSTOP, "rank 1 is stopped: no result for 10 s")])
def test_a_real_rank_that_is_struck_is_named(number: signal.Signals, message: str) -> None:
    pytest.importorskip("torch")
    task = {"steps": 10**9, "checkpoint_every": 10**9, "die_at": -1, "checkpoint": "/nonexistent"}

    def rank(which: int) -> list[int]:
        return [pid for pid in started("validation.measure.restart_job") if f"RANK={which}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]

    def strike() -> None:
        folders = set(Path(tempfile.gettempdir()).glob("simtrain-ranks-*/rank1.jsonl"))
        comes_true(lambda: rank(1) and any("step" in f.read_text() for f in folders | set(Path(tempfile.gettempdir()).glob("simtrain-ranks-*/rank1.jsonl"))))
        for pid in rank(1):
            os.kill(pid, number)

    with network.shaped(2, 1e9) as made:
        threading.Timer(1.0, strike).start()
        with pytest.raises(RankError, match=message):
            run_ranks("validation.measure.restart_job", 2, task, made, hang=10.0)
        prefix = made.prefix
    assert not started("validation.measure.restart_job")
    assert not namespaces(prefix)


@pytest.mark.slow
@needs_network
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    shapers = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
    command = [sys.executable, "-m", "simtrain", "validate", "torch", "--quick", "--out", str(tmp_path)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as victim:
        assert comes_true(lambda: len(started("validation.measure.worker")) >= 2, 300)  # it waits its turn if another run measures
        owned = [json.loads(path.read_text()) for path in network.REGISTRY.glob("*.json")]
        (prefix,) = [entry["prefix"] for entry in owned if entry["pid"] == victim.pid]
        assert namespaces(prefix)
        victim.send_signal(number)
        _, said = victim.communicate(timeout=60)
    assert victim.returncode == (130 if number == signal.SIGINT else -9)
    assert comes_true(lambda: not started("validation.measure.worker"))
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "simtrain: interrupted"
    else:
        assert prefix in network.remove_stale()  # what the next run begins with
    assert not namespaces(prefix)
    assert subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout == shapers
    assert not list(tmp_path.glob("*.part"))


@needs_network
def test_an_uplink_carries_no_more_than_it_may_and_a_rack_is_not_held_up() -> None:
    uplink, size = 80e6, 1_000_000
    receive = "import socket; s = socket.create_server(('', 5000)); print('up', flush=True); c, _ = s.accept()\nwhile c.recv(65536): pass"
    send = f"import socket, sys; s = socket.create_connection((sys.argv[1], 5000)); s.sendall(bytes({size})); s.shutdown(1)"
    with network.shaped(4, 1e9, uplink) as made:
        with ExitStack() as listening:
            servers = [listening.enter_context(subprocess.Popen([*made.enter(r), sys.executable, "-c", receive], stdout=subprocess.PIPE)) for r in (2, 3)]
            for server in servers:
                assert server.stdout is not None
                server.stdout.readline()
            start = time.monotonic()
            senders = [subprocess.Popen([*made.enter(r), sys.executable, "-c", send, f"10.77.0.{r + 3}"]) for r in (0, 1)]
            assert [sender.wait() for sender in [*senders, *servers]] == [0] * 4
            took = time.monotonic() - start
        # A bound from below, which no load on the machine can break: both streams pass one bucket.
        assert took >= (2 * size - network.BURST) * 8 / uplink
        shown = subprocess.run(["tc", "-s", "-n", f"{made.prefix}sw", "qdisc", "show", "dev", "up0"], capture_output=True, text=True, check=True).stdout
        assert 2 * size < int(shown.split("Sent ")[1].split()[0]) < 2.2 * size
        with subprocess.Popen([*made.enter(1), sys.executable, "-c", receive], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            subprocess.run([*made.enter(0), sys.executable, "-c", send, "10.77.0.2"], check=True)
        inside = subprocess.run(["tc", "-s", "-n", f"{made.prefix}sw", "qdisc", "show", "dev", "up0"], capture_output=True, text=True, check=True).stdout
        assert int(inside.split("Sent ")[1].split()[0]) < 2.2 * size  # what stays in a rack does not cross


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
        "import time\nfrom validation.measure import network\nwith network.shaped(2, 1e8) as made:\n    print(made.prefix, flush=True)\n    time.sleep(600)\n"
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
        assert comes_true(lambda: len(stubs()) == 2)
        victim.send_signal(signal.SIGINT)
        victim.wait(timeout=30)
    assert not namespaces(prefix)
    assert not stubs()


@pytest.mark.skipif(os.geteuid() != 0, reason="priorities need root")
def test_a_thread_that_holds_locks_keeps_its_core_and_gives_it_back() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, 1 + os.getpriority(os.PRIO_PROCESS, 0))
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(KeyError), holding_locks():
        inside = os.sched_getscheduler(0)
        raise KeyError
    assert inside in (os.SCHED_FIFO, before[0])  # some containers have no real-time class
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before
