"""A learner that gives way does so in every thread it has and will have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEARN = """
import json, os, threading
import torch
from learner.device import lower_priority, one_thread_beside, threads
torch.set_num_threads(2)
a = torch.rand(600, 600)
(a @ a).sum()
before = len(threads())
lower_priority(7, idle=True)
stop = threading.Event()
threading.Thread(target=stop.wait).start()
(a @ a).sum()
policies = [os.sched_getscheduler(t) & ~os.SCHED_RESET_ON_FORK for t in threads()]
stop.set()
nices = [os.getpriority(os.PRIO_PROCESS, t) for t in threads()]
free = one_thread_beside(False, 0), torch.get_num_threads()
print(json.dumps([before, policies, nices, free, one_thread_beside(True, 0), torch.get_num_threads()]))
"""


def test_every_thread_gives_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEARN], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    before, policies, nices, free, beside, computing = json.loads(done.stdout)
    assert before > 1
    assert set(policies) == {os.SCHED_IDLE}
    assert len(policies) > before
    assert all(nice >= 7 for nice in nices)
    assert free == [0, 2]
    assert (beside, computing) == (1, 1)
