"""Installs coding agents into .clients/: install.py NAME..., or `all` for those that this machine can have.

Each has a folder of its own. Nothing is done for one that is there in the version that agents.py names.
"""

import os
import subprocess
import sys
from shutil import which

from agent import INSTALLED, NODE, NODE_FOLDER
from agents import AGENTS

LIMIT_S = 900


def main(names: list[str]) -> int:
    """0 when all that were asked for by name are there."""
    agents = {agent.program: agent for agent in AGENTS if agent.installer}
    wanted = [agent for agent in agents.values() if agent.program in names or names == ["all"]]
    unknown = set(names) - agents.keys() - {"all"}
    if unknown:
        print(f"There is no client {', '.join(sorted(unknown))} in tests/clients/agents.py.")
        return 1
    failed = []
    if any(agent.installer == "npm" for agent in wanted):
        failed += install("node", "npm", (NODE,))
    for agent in wanted:
        failed += install(agent.program, agent.installer, agent.packages)
    return 1 if failed and names != ["all"] else 0


def install(name: str, installer: str, packages: tuple[str, ...]) -> list[str]:
    """[name] when it failed, and why-not.txt in its folder says why."""
    folder = INSTALLED / name
    done, why_not = folder / "installed.txt", folder / "why-not.txt"
    if done.exists() and done.read_text() == "\n".join(packages):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Installing {', '.join(packages)} into {folder}", flush=True)
    error = npm(folder, packages) if installer == "npm" else pip(folder, packages)
    if error:
        print(error)
        why_not.write_text(error)
        return [name]
    why_not.unlink(missing_ok=True)
    done.write_text("\n".join(packages))
    return []


def npm(folder, packages: tuple[str, ...]) -> str | None:
    if which("npm") is None:
        return "npm is missing: install Node.js."
    environment = os.environ | {"PATH": f"{NODE_FOLDER}:{os.environ['PATH']}"}
    return run(
        "npm", "install", "--no-fund", "--no-audit", "--prefix", str(folder), *packages, env=environment
    )


def pip(folder, packages: tuple[str, ...]) -> str | None:
    return run(sys.executable, "-m", "venv", str(folder)) or run(
        str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *packages
    )


def run(*command: str, env=None) -> str | None:
    """What went wrong, as the command says it."""
    try:
        ended = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} took more than {LIMIT_S} seconds."
    return None if ended.returncode == 0 else f"{' '.join(command)}\n{ended.stderr.strip()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
