"""The tables of docs/large-runs.md: the memory of runs on several machines, by `dps_jax.training.memory_plan`."""

from __future__ import annotations

from dps_jax.models import SIZES, DecoderConfig
from dps_jax.training import _memory

MODELS = {name: DecoderConfig(vocab_size=151_936, **SIZES[name.lower()]) for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B")}
# Machines: name, number of devices, and bytes of memory per device.
MACHINES = (("one 80 GB GPU", 1, 80e9), ("TPU v5e-8", 8, 16e9))
_WORKLOAD = _memory.Workload()
_PARTS = {
    "weights": "float32 weights",
    "moments": "moments of Adam",
    "gradients": "gradients",
    "computing": "bfloat16 copy, its gradient, gathered parts",
    "activations": "activations of a step",
    "pieces": "logits or scores",
    "sampling_weights": "bfloat16 copy for sampling",
    "cache": "cache",
    "sampling_logits": "logits of the next tokens",
}


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}"


def _cases() -> list[tuple[str, str, _memory.Workload | None, _memory.MemoryPlan]]:
    """Returns (model, machine, workload that fits or None, its memory plan) for every model and machine."""
    cases = []
    for machine, num_devices, size in MACHINES:
        for name, config in MODELS.items():
            asked = _memory.Workload(fsdp=num_devices)
            found = _memory.fit_workload(config, asked, size)
            cases.append((name, machine, found, _memory.memory_plan(config, found or asked)))
    return cases


def facts() -> str:
    """Returns a table of sizes that depend only on the model."""
    lines = ["| model | weights | float32 weights and moments, GB | cache per token, bytes |", "|---|---:|---:|---:|"]
    for name, config in MODELS.items():
        plan = _memory.memory_plan(config, _WORKLOAD)
        token = _memory.cache_bytes_per_token(config)
        lines.append(f"| {name} | {_memory.num_parameters(config):,} | {_gigabytes(plan.state)} | {token:,} |")
    return "\n".join(lines)


def settings() -> str:
    """Returns a table of options with which each model fits on each machine."""
    load = _WORKLOAD
    lines = [
        f"B = {load.batch_size} prompts of at most {load.prompt_length} tokens, G = {load.group_size} completions of "
        f"T = {load.completion_length} tokens, bfloat16:",
        "",
        "| model | devices | options | update, GB | sampling, GB |",
        "|---|---|---|---:|---:|",
    ]
    for name, machine, found, plan in _cases():
        if found is None:
            words = "does not fit"
        else:
            words = f"`--learner.rows-per-step {found.rows_per_step} --rollout.chunk-size {found.chunk_size}`"
            words += "" if found.fsdp == 1 else f" `--mesh.fsdp {found.fsdp}`"
        lines.append(f"| {name} | {machine} | {words} | {_gigabytes(plan.update)} | {_gigabytes(plan.sampling)} |")
    return "\n".join(lines)


def parts() -> str:
    """Returns a table of the memory of a device by its contents, in GB."""
    cases = _cases()
    heads = [f"{name}, {machine}" for name, machine, _, _ in cases]
    lines = [f"| GB per device | {' | '.join(heads)} |", "|---|" + "---:|" * len(cases)]
    for field, words in _PARTS.items():
        lines.append(f"| {words} | {' | '.join(_gigabytes(getattr(plan, field)) for *_, plan in cases)} |")
    for field in ("update", "sampling"):
        lines.append(f"| **{field}, in all** | {' | '.join(_gigabytes(getattr(plan, field)) for *_, plan in cases)} |")
    return "\n".join(lines)


SECTIONS = {"large_runs_facts": facts, "large_runs_settings": settings, "large_runs_parts": parts}
