"""Lays faults into a repository, one after the other, and runs for each the tests that reach it.

Job on standard input: {"folder", "arguments", "mutants": [{"id", "files", "tests", "limit_s"}, …], "out"}.
Each mutant runs in a fork, ended with all that it started after `limit_s` of processor time, or ten times
that. The file `out` gets a line for each,
{"id", "failed": [test, …], "num_passed", "timed_out", "broken"}: `broken` means that tests could not be
collected. This is a sieve: what one mutant leaves behind in the sandbox could be seen by the next.
"""

import json
import math
import os
import resource
import select
import signal
import sys
import time

import pytest

MAX_FAILED = 200


class Plugin:
    def __init__(self, wanted):
        self.wanted = frozenset(wanted)
        self.failed = []
        self.num_passed = 0
        self.broken = False
        self.stages = {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.wanted]

    def pytest_collectreport(self, report):
        self.broken = self.broken or report.failed

    def pytest_runtest_logreport(self, report):
        ok = report.outcome == "passed" and getattr(report, "wasxfail", None) is None
        self.stages[report.nodeid] = self.stages.get(report.nodeid, True) and ok
        if report.when == "teardown":
            if self.stages.pop(report.nodeid):
                self.num_passed += 1
            else:
                self.failed.append(report.nodeid)


def run_tests(job, mutant, report):
    """In the fork."""
    os.setpgid(0, 0)
    limit = math.ceil(mutant["limit_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    plugin = Plugin(mutant["tests"])
    paths = sorted({name.split("::")[0] for name in mutant["tests"]})
    arguments = [
        "-q", "-p", "no:cacheprovider", "--rootdir", job["folder"], "--no-header", "--tb=no",
        "-o", "addopts=", "--continue-on-collection-errors", *job["arguments"], *paths,
    ]  # fmt: skip
    pytest.main(arguments, plugins=[plugin])
    failed = plugin.failed[:MAX_FAILED]
    told = {"failed": failed, "num_passed": plugin.num_passed, "broken": plugin.broken, "timed_out": False}
    os.write(report, json.dumps(told).encode())


def in_fork(job, mutant):
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            run_tests(job, mutant, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    deadline = time.monotonic() + 10 * mutant["limit_s"]
    data = b""
    timed_out = True
    while (left := deadline - time.monotonic()) > 0:
        if select.select([ours], [], [], left)[0]:
            piece = os.read(ours, 1 << 16)
            if not piece:
                timed_out = False
                break
            data += piece
    if timed_out:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    timed_out = timed_out or (
        os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    )
    os.close(ours)
    try:
        os.killpg(pid, signal.SIGKILL)  # what it started
    except OSError:
        pass
    try:
        return json.loads(data)
    except ValueError:  # killed, or it ended the process
        return {"failed": [], "num_passed": 0, "broken": not timed_out, "timed_out": timed_out}


def lay(folder, files):
    for path, text in files.items():
        with open(f"{folder}/{path}", "w", encoding="utf-8", newline="") as file:
            file.write(text)


def main(job):
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(job["folder"])
    sys.path.insert(0, job["folder"])
    sys.dont_write_bytecode = True
    os.dup2(2, 1)
    with open(job["out"], "w") as out:
        for mutant in job["mutants"]:
            before = {}
            for path in mutant["files"]:
                with open(path, encoding="utf-8", newline="") as file:
                    before[path] = file.read()
            lay(job["folder"], mutant["files"])
            told = in_fork(job, mutant)
            lay(job["folder"], before)
            out.write(json.dumps({"id": mutant["id"], **told}) + "\n")
            out.flush()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.stdin.buffer.read()))
