"""Prints the table of parity with transformers, in Markdown: python bench/parity.py

It is what tests/model/test_parity.py measures: fp32 on the CPU, the same files on both sides.
"""

import platform
import subprocess
import sys
from pathlib import Path

import torch
import transformers

TEST = Path(__file__).parent.parent / "tests" / "model" / "test_parity.py"

run = subprocess.run([sys.executable, "-m", "pytest", "-s", "-q", TEST], capture_output=True, text=True)
print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}\n")
print("\n".join(line for line in run.stdout.splitlines() if line.startswith("|")))
if run.returncode:
    sys.exit(run.stdout[-2000:])
