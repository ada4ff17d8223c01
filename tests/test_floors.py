"""Imports go strictly downward: a room never imports its floor's neighbours or anything above."""

import ast
from pathlib import Path

import lathe

HOUSE = Path(lathe.__file__).parent

FLOORS = [
    {"errors"},
    {"types"},
    {"jsonl", "config"},
    {"log"},
    {"text", "kernels", "sandbox"},
    {"model"},
    {"engine", "client", "agent", "tasks", "data"},
    {"rollout", "server", "terminal", "auto", "testing"},
    {"synth", "train", "evals"},
    {"improve", "commands"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            raise AssertionError(f"{path}: relative imports hide the room; write it out")
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("lathe.")}
    return rooms & FLOOR_OF.keys()


def test_every_file_lives_on_a_floor():
    modules = [path for path in HOUSE.rglob("*.py") if path.parent != HOUSE or path.stem != "__init__"]
    assert len(modules) > 20
    assert {room_of(path) for path in modules} <= FLOOR_OF.keys()


def test_imports_go_strictly_downward():
    climbs = []
    for path in HOUSE.rglob("*.py"):
        if path == HOUSE / "__init__.py":  # the front door: names only, imported when used
            continue
        room = room_of(path)
        for other in imported_rooms(path) - {room}:
            if FLOOR_OF[other] >= FLOOR_OF[room]:
                climbs.append(f"{path.relative_to(HOUSE)} imports {other}")
    assert not climbs


def test_there_is_no_utils():
    assert not list(HOUSE.rglob("*util*"))
