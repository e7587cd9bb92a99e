"""What a benchmark ran on, and whether it was alone there. Linux says most; elsewhere less is known."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "grpcio")


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and versions of what does the work."""
    described: dict[str, Any] = {
        "processor": _first_field("/proc/cpuinfo", "model name")
        or platform.processor()
        or platform.machine(),
        "cores": usable_cores(),
    }
    memory_kib = _first_field("/proc/meminfo", "MemTotal").removesuffix(" kB")
    if memory_kib.isdigit():
        described["memory_gib"] = round(int(memory_kib) / 2**20, 1)
    described["system"] = f"{platform.system()} {platform.release()}"
    described["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            continue
    return described


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes() -> int:
    """The most memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def busy_cpu_s() -> float | None:
    """Seconds that all cores together have been busy since the machine was started; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _first_field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
