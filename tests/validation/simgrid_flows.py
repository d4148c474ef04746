"""Simulates flows with SimGrid; run as a program by the system's Python, which is where Debian's python3-simgrid lies.

Reads {"hosts", "capacity", "flows": [[source, target, start, bytes, cap or 0, [links]], ...]} as JSON from standard input and writes
{"finish": [...], "version": ..., "seconds": ...}. The model is pure max-min sharing: no TCP window, no bandwidth factor, no cross traffic.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

CONFIGURATION = (
    "network/model:CM02",
    "network/TCP-gamma:0",
    "network/weight-S:0",
    "network/crosstraffic:0",
    "network/bandwidth-factor:1",
    "network/latency-factor:1",
    "surf/precision:1e-12",
)


def simulate(job: dict[str, Any]) -> dict[str, Any]:
    import simgrid as sg  # pyright: ignore[reportMissingImports]

    engine = sg.Engine([sys.argv[0], "--log=root.threshold:critical", *(f"--cfg={item}" for item in CONFIGURATION)])
    zone = sg.NetZone.create_full_zone("network")
    hosts = [zone.create_host(f"host{i}", 1e9) for i in range(job["hosts"])]
    links = [zone.create_link(f"link{i}", bandwidth).set_latency(0.0).seal() for i, bandwidth in enumerate(job["capacity"])]
    routed = set()
    for source, target, _, _, cap, crossed in job["flows"]:
        if (source, target) not in routed:
            routed.add((source, target))
            path = [sg.LinkInRoute(links[k]) for k in crossed]
            if cap:  # a link of its own: version 3.32 refuses Comm.set_rate() after Comm.sendto_init()
                path.append(sg.LinkInRoute(zone.create_link(f"cap{source}", cap).set_latency(0.0).seal()))
            zone.add_route(hosts[source].netpoint, hosts[target].netpoint, None, None, path, False)
    zone.seal()
    comms: dict[int, Any] = {}

    def send_all() -> None:
        for flow in sorted(range(len(job["flows"])), key=lambda f: job["flows"][f][2]):
            source, target, start, nbytes, _, _ = job["flows"][flow]
            if start > sg.Engine.clock:
                sg.this_actor.sleep_until(start)
            comms[flow] = sg.Comm.sendto_async(hosts[source], hosts[target], nbytes)
        for comm in comms.values():
            comm.wait()

    sg.Actor.create("sender", hosts[0], send_all)
    began = time.process_time()  # the machine may be shared
    engine.run()
    seconds = time.process_time() - began
    finish = [comms[flow].finish_time for flow in range(len(comms))]
    return {"finish": finish, "version": sg.simgrid_version, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(simulate(json.load(sys.stdin))))
