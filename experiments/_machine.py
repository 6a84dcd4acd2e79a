"""Describes the machine that a measurement was made on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import jax

import dps_jax


def memory_bytes() -> tuple[int, int]:
    """Returns the available and the total memory of the device to measure, in bytes."""
    stats = jax.devices()[0].memory_stats() or {}
    if jax.default_backend() != "cpu" and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), stats["bytes_limit"]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return (available[0] if available else total // 2), total


def describe_machine() -> dict[str, Any]:
    """Returns the hardware and software that times depend on, without anything that identifies the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "device_memory_gib": round(memory_bytes()[1] / 2**30, 1),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "dps_jax": dps_jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
