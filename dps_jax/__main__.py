"""Prints versions and devices, and where to start: `python -m dps_jax`."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import sys

import dps_jax

_CORE = ("jax", "jaxlib", "flax", "optax", "numpyro", "orbax-checkpoint", "numpy", "scipy")
# Extras for work on the project itself, and extras whose effect is visible in the list of devices.
_HIDDEN = ("dev", "docs", "bench", "transformers", "cuda", "tpu")
_START = """\
Where to start
  dps_jax.PromptSelector             choose the prompts of a training loop; help(dps_jax.PromptSelector) has an example
  python -m dps_jax.advise LOG       estimate from the log of a run what selection would have gained
  python -m dps_jax.next_prompts     write a file with the prompts of the next epoch
  python -m dps_jax.report RUN       write a page about your runs, for a browser
In a clone of the repository: make train, and make docs for the documentation."""


def version_of(name: str) -> str:
    """Returns the installed version of a distribution, or "not installed"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def devices() -> str:
    """Returns the devices that JAX computes on, in words, or the reason why there are none."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError) as error:  # an incompatible plug-in, or a device in use
        return f"none, because JAX failed to start: {error}"
    kinds = [device.device_kind for device in found]
    words = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return f"{', '.join(words)} (backend {jax.default_backend()}, {jax.process_count()} process)"


def extras() -> dict[str, list[str]]:
    """Returns the extras for users, each with the distributions that it needs and that are not installed."""
    missing: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("dps-jax") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for requirement in requirements:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra and extra[1] not in _HIDDEN:
            found = missing.setdefault(extra[1], [])
            if version_of(name[0]) == "not installed":
                found.append(name[0])
    return missing


def report() -> str:
    """Returns what the command prints."""
    missing = extras()
    installed = [extra for extra, names in missing.items() if not names]
    others = [extra for extra, names in missing.items() if names]
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    lines = [
        f"dps_jax {dps_jax.__version__}, {where}",
        *(f"  {name:<17} {version_of(name)}" for name in _CORE),
        f"Devices: {devices()}",
    ]
    if missing:
        lines.append(f"Extras: {', '.join(installed) or 'none'}; not installed: {', '.join(others) or 'none'}")
    return "\n".join([*lines, "", _START])


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    argparse.ArgumentParser(prog="python -m dps_jax", description=__doc__).parse_args(arguments)
    print(report())


if __name__ == "__main__":
    main(sys.argv[1:])
