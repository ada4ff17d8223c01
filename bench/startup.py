"""Where the time goes from `lathe generate smollm2` to its first token: medians of new processes.

    python bench/startup.py --rounds 5

The first line is the plain command, seen from outside. The others are the same command with a clock at its
stages: seconds that passed, and seconds of processor time, which other work on the machine changes less. For
single imports: `python -X importtime -m lathe.cli generate smollm2 Once --max-tokens 1`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES = {
    "verb": "Python, command line",
    "torch": "import torch",
    "engine": "import the engine",
    "header": "find the file, read its header",
    "tokenizer": "tokenizer",
    "weights": "weights",
    "rest": "memory check, engine, template",
    "first": "first token",
}
WORDS = ["generate", "smollm2", "The capital of France is", "--max-tokens", "1", "--temperature", "0"]


def staged(report: Path, started: float) -> None:
    """Runs the command in this process and writes how long each stage took: [seconds, processor seconds]."""
    import lathe.cli as cli
    import lathe.commands.generate as verb

    took = {stage: [0.0, 0.0] for stage in STAGES}
    last = [started, 0.0]

    def end(stage: str) -> None:
        now = [time.time(), time.process_time()]
        for place in (0, 1):
            took[stage][place] += now[place] - last[place]
        last[:] = now

    def clocked(home: Any, name: str, stage: str) -> None:
        function = getattr(home, name)

        def with_clock(*args: Any, **options: Any) -> Any:
            end("rest")
            result = function(*args, **options)
            end(stage)
            return result

        setattr(home, name, with_clock)

    load: Callable[..., Any] = verb.load

    def load_with_clock(*args: Any, **options: Any) -> Any:
        from lathe.terminal import talk
        from lathe.terminal.start import no_collections

        show = talk.show

        def show_with_clock(chunks: Any, *rest: Any) -> Any:
            def watched() -> Any:
                for chunk in chunks:
                    end("first")
                    yield chunk

            return show(watched(), *rest)

        talk.show = show_with_clock
        end("verb")
        with no_collections():
            import torch  # noqa: F401

            end("torch")
            import lathe.engine.llm as llm
            from lathe.model import hub

            end("engine")
            clocked(hub, "resolve", "header")
            clocked(llm, "open_checkpoint", "header")
            clocked(llm, "load_tokenizer", "tokenizer")
            clocked(llm, "load_model", "weights")
            loaded = load(*args, **options)
        end("rest")
        return loaded

    verb.load = load_with_clock
    sys.argv[1:] = WORDS
    try:
        cli.main()
    finally:
        report.write_text(json.dumps(took))


def seconds_outside() -> float:
    """From starting the plain command to the first byte of its answer."""
    started = time.monotonic()
    command = [sys.executable, "-m", "lathe.cli", *WORDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit(f"{' '.join(command)} says nothing.")
        taken = time.monotonic() - started
        process.stdout.read()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--staged", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.staged:
        staged(Path(options.staged[0]), float(options.staged[1]))
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or Lathe would be compiled anew each time
    seconds_outside()  # files come into memory, and Lathe is compiled
    outside, rounds = [], []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        for _ in range(options.rounds):
            outside.append(seconds_outside())
            subprocess.run(
                [sys.executable, __file__, "--staged", str(report), str(time.time())],
                check=True,
                capture_output=True,
            )
            rounds.append(json.loads(report.read_text()))
    print(f"{'to the first token, from outside':<34} {statistics.median(outside):6.2f} s")
    print(f"{'':<34} {'passed':>8} {'processor':>11}")
    for stage, title in STAGES.items():
        passed, processor = (statistics.median(taken[stage][place] for taken in rounds) for place in (0, 1))
        print(f"{title:<34} {passed:6.2f} s {processor:9.2f} s")
    sums = [[sum(taken[stage][place] for stage in STAGES) for taken in rounds] for place in (0, 1)]
    passed, processor = map(statistics.median, sums)
    print(f"{'all stages':<34} {passed:6.2f} s {processor:9.2f} s")


if __name__ == "__main__":
    main()
