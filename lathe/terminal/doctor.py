"""What this machine can do, on one screen."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lathe.kernels.cpu import library
from lathe.sandbox.probe import BACKENDS, Probe, probe

CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "f16c",
    "asimd",
    "bf16",
    "sve",
)


@dataclass(frozen=True)
class Health:
    """The rows of the first half (name, text), and what was found out about sandboxes."""

    machine: tuple[tuple[str, str], ...]
    sandboxes: Probe

    def to_json(self) -> str:
        backends = {
            name: {"works": not self.sandboxes.refused(name), "why_not": self.sandboxes.why(name)}
            for name in BACKENDS
        }
        return json.dumps(
            {
                "machine": dict(self.machine),
                "sandboxes": [asdict(each) for each in self.sandboxes.findings],
                "backends": backends,
                "auto": self.sandboxes.auto,
            },
            indent=2,
        )


def examine() -> Health:
    """Look at the machine and try what sandboxes need. Changes nothing."""
    return Health(tuple(machine()), probe())


def machine() -> list[tuple[str, str]]:
    virtual = "" if sys.prefix == sys.base_prefix else " (virtual environment)"
    return [
        ("system", f"{platform.system()} {platform.release()} on {platform.machine()}"),
        ("Python", f"{platform.python_version()} in {sys.prefix}{virtual}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("CPU", f"{os.cpu_count()} cores; {' '.join(cpu_features()) or 'no known features'}"),
        ("CPU kernels", library.describe()),
        ("GPU", gpu()),
    ]


def cpu_features() -> list[str]:
    """Those of the kernel's list that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    rows = (line.partition(":") for line in text.splitlines())
    known = next((value.split() for name, _, value in rows if name.strip() in ("flags", "Features")), [])
    return [each for each in CPU_FEATURES if each in known]


def gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    return ", ".join(f"{each.name} ({each.total_memory / 1e9:.0f} GB)" for each in names)


def show(found: Health, out: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, text in found.machine:
        table.add_row(Text(name, style="dim"), "", Text(text))
    table.add_row("")
    for each in found.sandboxes.findings:
        word = Text("yes", style="green") if each.works else Text("no", style="red")
        table.add_row(Text(each.name, style="dim"), word, Text(each.detail))
    out.print(table)
    out.print()
    auto = found.sandboxes.auto
    if auto is None:
        out.print("No sandbox can be made here.", style="bold red")
        for name in BACKENDS:
            out.print(Text(f"{name}: {found.sandboxes.why(name)}"), soft_wrap=True)
        return
    out.print(Text(f"Sandboxes: auto takes {auto}{reason(found.sandboxes, auto)}.", style="bold"))


def reason(found: Probe, auto: str) -> str:
    better = BACKENDS[: BACKENDS.index(auto)]
    if not better:
        return ", as all that it needs works"
    return ", as there is no " + " and no ".join(f"{name} ({found.why(name)})" for name in better)
