"""A rank that needs no torch: does what the task says of its number."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    task = json.loads(Path(os.environ["SIMTRAIN_TASK"]).read_text())
    what = task["ranks"][int(os.environ["RANK"])]
    if what == "die":
        sys.exit("cannot bind 10.77.0.9: address in use")
    if what == "hang":
        time.sleep(600)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    with open(os.environ["SIMTRAIN_RESULTS"], "a") as out:
        out.write(json.dumps({"rank": os.environ["RANK"]}) + "\n")
