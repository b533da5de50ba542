"""What the figures were measured on."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("tenora", "torch", "transformers", "peft")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int, llama_server: Path | None) -> dict[str, Any]:
    """Hardware, versions, and how busy the machine was with other things when the run began."""
    cpu = _cpuinfo()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "instructions": [flag for flag in _FLAGS if flag in cpu.get("flags", "").split()],
        "cores": cores(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "llama.cpp": _llama_version(llama_server),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _llama_version(binary: Path | None) -> str | None:
    if binary is None:
        return None
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.removeprefix("version:").strip() for line in lines if line.startswith("version")), None)
