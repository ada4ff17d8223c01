"""The example repository with a mistake, and a model's words that mend it."""

import shutil
import subprocess
from pathlib import Path

from scripts import call

import lathe

EXAMPLE = Path(lathe.__file__).parent.parent / "examples" / "planted_bug"
TASK = "the tests fail: find the bug and mend it"
RUN = "python3 -m unittest"
OLD = "result[-1] = (result[-1][0], end)"
NEW = "result[-1] = (result[-1][0], max(result[-1][1], end))"


def copy_example(folder: Path) -> Path:
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__/\n")
    for words in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "A start"),
    ):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def mending(folder: Path) -> tuple[str, ...]:
    """A whole solution, turn by turn."""
    return (
        "I run the tests first.\n" + call("bash", command=RUN),
        call("read", file_path=str(folder / "slots.py"))
        + "\n"
        + call("grep", pattern="merged", path=str(folder)),
        "A slot inside another one shortens it: the end must be the later of the two.\n"
        + call("edit", file_path=str(folder / "slots.py"), old_string=OLD, new_string=NEW),
        call("bash", command=RUN),
        "merged() took the last end even where the slot before reaches further. It takes the later one now; "
        "all four tests pass.",
    )
