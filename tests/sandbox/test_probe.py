"""What a machine is said to be able to do, on this one and on one that refuses."""

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lathe.cli import app
from lathe.errors import BackendRefused, InfrastructureError, UserError
from lathe.sandbox.namespace.syscalls import CLONE_NEWUSER
from lathe.sandbox.pool import open_pool
from lathe.sandbox.probe import Finding, Probe, docker_engine, probe, tried

REFUSING = f"""
import os, sys
from pathlib import Path
from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.view import write_maps
uid, gid = os.getuid(), os.getgid()
sys_.call("unshare", {CLONE_NEWUSER})
write_maps("self", [(0, uid, 1)], [(0, gid, 1)])
Path("/proc/sys/user/max_user_namespaces").write_text("0")
exec(sys.argv[1])
"""


def on_refusing_machine(program: str) -> str:
    """What a program prints where no user namespace may be made."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSING, program], capture_output=True, text=True, timeout=120
    )
    if "max_user_namespaces" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"can't be forbidden here: {done.stderr[-200:]}")
    assert not done.stderr, done.stderr
    return done.stdout


def test_probing_changes_nothing_and_finds_each_thing_or_says_why_not(nothing_left):
    found = probe()
    names = [each.name for each in found.findings]
    assert len(set(names)) == len(names) == 18
    assert all(each.detail for each in found.findings if not each.works)


async def test_where_the_probe_sees_namespaces_there_are_sandboxes():
    found = probe()
    if found.refused("namespace"):
        pytest.skip(found.why("namespace"))
    assert found.auto == "namespace"
    async with open_pool("auto") as pool:
        assert pool.backend == "namespace"


def test_a_machine_that_refuses_says_what_and_what_would_help():
    said = on_refusing_machine(
        "from lathe.sandbox.probe import probe\n"
        "found = probe()\n"
        "print(found['user namespace'].works, found['overlay'].works, found['seccomp'].works)\n"
        "print(found.why('namespace'))"
    )
    first, why = said.splitlines()
    assert first == "False False True"
    assert "No space left on device" in why and "user.max_user_namespaces" in why


def test_a_backend_that_is_refused_is_a_users_error_and_never_another_one():
    said = on_refusing_machine(
        "from lathe.sandbox.pool import choose\n"
        "from lathe.errors import BackendRefused\n"
        "try: print(choose('namespace'))\n"
        "except BackendRefused as error: print(error)"
    )
    assert said.startswith("this machine refuses sandboxes by namespace: user namespace: ")


def test_the_refusal_is_both_the_machines_and_the_users_to_mend():
    seen = [replace(each, works=False) if each.name == "docker engine" else each for each in probe().findings]
    found = Probe(tuple(seen))
    with pytest.raises(UserError, match="start the engine") as caught:
        found.check("docker")
    assert isinstance(caught.value, BackendRefused) and isinstance(caught.value, InfrastructureError)


async def test_an_unknown_backend_is_named():
    with pytest.raises(UserError, match="no backend 'podman'"):
        async with open_pool("podman"):  # type: ignore[arg-type]
            raise AssertionError


def test_an_attempt_that_dies_is_a_no():
    assert tried("death", lambda: os._exit(3)) == Finding("death", False, "the process that tried it died")


@pytest.mark.parametrize(
    ("answer", "works", "words"),
    [
        (b'HTTP/1.0 200 OK\r\n\r\n{"Version": "27.1"}', True, "27.1 at "),
        (b"SSH-2.0\r\n\r\n", False, "is no docker engine"),
        (None, False, "none answers at"),
    ],
)
def test_a_docker_client_without_an_engine_is_a_no(tmp_path, monkeypatch, answer, works, words):
    path = str(tmp_path / "engine")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        if answer is not None:
            listener.listen()

            def serve():
                end, _ = listener.accept()
                with end:
                    end.recv(1000)
                    end.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
        found = docker_engine()
    assert found.works is works and words in found.detail


def test_doctor_shows_all_of_it_on_one_screen():
    shown = CliRunner().invoke(app, ["doctor"])
    assert len(shown.output.splitlines()) < 40
    as_json = CliRunner().invoke(app, ["doctor", "--json"])
    said = json.loads(as_json.output)
    assert set(said) == {"machine", "sandboxes", "backends", "auto"}
    assert (shown.exit_code, as_json.exit_code) == ((0, 0) if said["auto"] else (1, 1))
    assert all(each["why_not"] for each in said["backends"].values() if not each["works"])
