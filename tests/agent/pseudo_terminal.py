"""A program in a real pseudo-terminal: keys go in, and what the screen would get is waited for."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence

# The terminal becomes the program's own, so that Ctrl-C is a signal as it is for a person.
LAUNCH = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|.)")
CTRL_C, CTRL_D, TAB, ENTER, ESCAPE = "\x03", "\x04", "\t", "\r", "\x1b"


class PseudoTerminal:
    def __init__(self, words: Sequence[str], env: Mapping[str, str], *, columns: int = 100):
        self.master, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *words],
            stdin=end,
            stdout=end,
            stderr=end,
            env={**env, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(end)
        self.raw = b""
        self.seen = 0
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.reader.join(5)
        os.close(self.master)

    def _read(self):
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux says EIO when the other end is closed
                return
            if not data:
                return
            self.raw += data

    @property
    def text(self) -> str:
        """All that was written, without escapes."""
        return ESCAPES.sub("", self.raw.decode("utf-8", "replace")).replace("\r", "")

    def type(self, text: str, end: str = ENTER) -> None:
        os.write(self.master, (text + end).encode())

    def wait_for(self, *words: str, timeout_s: float = 60.0) -> str:
        """Wait until all of these have been written since the last wait, one after the other; what was
        written up to there."""
        deadline = time.monotonic() + timeout_s
        while True:
            text, at = self.text, self.seen
            for word in words:
                found = text.find(word, at)
                if found < 0:
                    break
                at = found + len(word)
            else:
                before, self.seen = text[self.seen : at], at
                return before
            ended = self.process.poll() is not None and not self.reader.is_alive()
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{words} were not written, but:\n{self.text[self.seen :]}")
            time.sleep(0.02)

    def end(self, timeout_s: float = 60.0) -> int:
        return self.process.wait(timeout_s)
