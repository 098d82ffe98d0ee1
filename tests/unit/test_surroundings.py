"""The tests' own harness: a run says the same, whoever started it."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, subprocess, sys
from tests.support import surroundings
surroundings.settle()
show = "import json, os; print(json.dumps([open('/proc/self/status').read(), os.umask(0), dict(os.environ)]))"
print(subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True).stdout)
"""


def test_programs_of_a_run_inherit_nothing_of_its_starter() -> None:
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "NOTIFY_SOCKET": "/n", "LC_ALL": "tr_TR.UTF-8"}
    env |= {f"FILL_{n}": "x" * 100 for n in range(500)}
    burdened = [sys.executable, "-m", "tests.support.burden", sys.executable, "-c", PROGRAM]
    done = subprocess.run(burdened, check=True, capture_output=True, text=True, env=env)
    status, umask, environment = json.loads(done.stdout)
    fields = dict(line.split(":", 1) for line in status.splitlines())
    python = 1 << 12 | 1 << 24  # SIGPIPE and SIGXFSZ, which the one that shows it ignores itself
    c_library = 1 << 31 | 1 << 32  # which Python does not reach
    assert int(fields["SigIgn"], 16) & ~c_library == python
    assert int(fields["SigBlk"], 16) & ~c_library == 0
    assert umask == 0o022
    assert not {"http_proxy", "NOTIFY_SOCKET", "LC_ALL", "FILL_1"} & set(environment)
    assert {"PATH", "CRISHIM_TEST"} <= set(environment)
