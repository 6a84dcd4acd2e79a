"""Training runs small enough for tests, and what tells whether two of them ended alike."""

import dataclasses
import functools
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from dps_jax import traces
from dps_jax.training import _checkpoints, _figures, _policy_files, _run_log, _setup, _trainer
from dps_jax.training import _config as configs

_TIMES = re.compile(r"_s$|seconds$")
_WEIGHTS = Path(__file__).parents[2] / "experiments" / "data" / "chain_sum.safetensors"
_build = _setup.build
_shared_phases = functools.cache(_trainer.Phases)


def tiny(out_dir: Path, **changes) -> configs.TrainConfig:
    """Returns the config of a run of seconds."""
    fields = {
        "name": "run",
        "out_dir": out_dir,
        "num_rounds": 6,
        "eval_every": 3,
        "eval_samples": 2,
        "checkpoint_every": 2,
        "task": configs.TaskConfig(name="chain_sum", num_train=50, num_test=16, broken=0.0),
        # The shipped policy solves some problems, so that there is something to learn.
        "model": configs.ModelConfig(weights=_WEIGHTS),
        "selector": configs.SelectorConfig(method="dps", pool_factor=4),
        "rollout": configs.RolloutConfig(batch_size=4, group_size=4),
    }
    fields |= changes
    if fields["task"].name != "chain_sum" and "model" not in changes:
        fields["model"] = configs.ModelConfig(size="0.1m")
    return configs.TrainConfig(**fields)


def quiet() -> Console:
    """Returns a console whose text can be read by `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


def run(config: configs.TrainConfig) -> tuple[dict, str]:
    """Returns the summary of a run, and what it printed."""
    console = quiet()
    summary = _trainer.train(config, console)
    return summary, console.file.getvalue()


def extended(config: configs.TrainConfig, num_rounds: int) -> configs.TrainConfig:
    """Returns the config with another number of rounds."""
    return dataclasses.replace(config, num_rounds=num_rounds)


@functools.cache
def _parts(config: configs.TrainConfig) -> _setup.Parts:
    return _build(config)


def share_programs(monkeypatch, *, has_figures: bool = False) -> None:
    """Lets all runs of the same options use the same compiled programs, and leaves figures out."""

    def build(config: configs.TrainConfig) -> _setup.Parts:
        same = {"name": "run", "out_dir": Path(), "num_rounds": 1, "resume": True, "eval_every": 1}
        return _parts(dataclasses.replace(config, **same, checkpoint_every=1, keep_last=1))

    monkeypatch.setattr(_setup, "build", build)
    monkeypatch.setattr(_trainer, "Phases", _shared_phases)
    if not has_figures:
        monkeypatch.setattr(_figures, "plot_run", lambda *arguments, **options: [])


def timeless(path: Path) -> list[dict]:
    """Returns the records of metrics.jsonl without what a clock has measured."""
    return [{k: v for k, v in record.items() if not _TIMES.search(k)} for record in _run_log.read_metrics(path)]


def timeless_summary(config: configs.TrainConfig) -> dict:
    """Returns the summary of a run without what a clock has measured."""
    summary = json.loads((config.folder / "summary.json").read_text())
    return {name: value for name, value in summary.items() if not _TIMES.search(name)}


def final_state(config: configs.TrainConfig):
    """Returns the state in the last checkpoint of a run."""
    parts = _setup.build(config)
    template = jax.eval_shape(lambda params: parts.round.init(params, jax.random.key(0)), parts.params)
    with _checkpoints.Checkpoints(config.folder / "checkpoints") as store:
        return store.restore(template).state


def assert_same_end(one: configs.TrainConfig, other: configs.TrainConfig) -> None:
    """Checks that two runs ended bit for bit alike: summary, metrics, trace, policies, and the last state."""
    assert timeless(one.folder / "metrics.jsonl") == timeless(other.folder / "metrics.jsonl")
    assert timeless_summary(one) == timeless_summary(other)
    for name in (_policy_files.LAST, _policy_files.BEST):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    for left, right in zip(*(traces.read_trace(run.folder / "trace.npz") for run in (one, other)), strict=True):
        np.testing.assert_array_equal(left, right)
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), final_state(one), final_state(other))
