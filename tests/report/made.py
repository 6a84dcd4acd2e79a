"""Folders of runs as training writes them, without training."""

import io
import json

import numpy as np

from dps_jax import traces
from dps_jax.training import _config as configs
from dps_jax.training import _options

NUM_PROMPTS, BATCH, GROUP = 40, 8, 4


def trace(num_rounds, seed=0, num_prompts=NUM_PROMPTS):
    """Returns a trace in which prompts of all kinds occur."""
    rng = np.random.default_rng(seed)
    rates = rng.choice([0.0, 0.3, 0.7, 1.0], num_prompts)
    ids = np.concatenate([rng.permutation(num_prompts)[:BATCH] for _ in range(num_rounds)])
    counts = np.full(ids.size, GROUP)
    rounds = np.repeat(np.arange(num_rounds), BATCH)
    return traces.Trace(rounds, ids, rng.binomial(counts, rates[ids]), counts)


def record(index):
    """Returns a line of metrics.jsonl; every third round has an evaluation."""
    found = {
        "round": index,
        "rollouts": 32,
        "completion_tokens": 200 + index,
        "effective_sample_ratio": 0.5,
        "loss": 0.1,
    }
    found |= {"reward": index / 50, "entropy": None, "grad_norm": 1.0, "confusion": [[0] * 3] * 3}
    found |= {"select_s": 0.1, "rollout_s": 0.2, "update_s": 0.3, "observe_s": 0.01}
    if index % 3 == 2:
        found |= {"test_accuracy": 0.1 + index / 30, "test_accuracy_error": 0.01}
    return found


def write_logs(folder, num_rounds, num_traced=None, groups=None):
    """Writes metrics.jsonl, prompts.npz and trace.npz."""
    lines = [json.dumps(record(index)) + "\n" for index in range(num_rounds)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    traces.write_trace(folder / "trace.npz", trace(num_rounds if num_traced is None else num_traced))
    groups = np.arange(NUM_PROMPTS) % 3 if groups is None else groups
    content = io.BytesIO()
    np.savez(content, groups=groups, features=np.arange(groups.size, dtype=np.float32)[:, None] % 5)
    (folder / "prompts.npz").write_bytes(content.getvalue())


def run(out_dir, name="run", *, num_rounds=12, num_done=None, num_traced=None, **changes):
    """Writes the folder of a run on a task that has ended, or that did some of its rounds, and returns it."""
    folder = out_dir / name
    folder.mkdir(parents=True)
    fields = {
        "num_rounds": num_rounds,
        "task": configs.TaskConfig(name="chain_sum", num_train=NUM_PROMPTS, broken=0.3),
        "selector": configs.SelectorConfig(method="mopps", pool_factor=4),
        "rollout": configs.RolloutConfig(batch_size=BATCH, group_size=GROUP),
    }
    config = configs.TrainConfig(name=name, out_dir=out_dir, **(fields | changes))
    _options.write(config, [], None)
    if num_done != 0:
        write_logs(folder, num_rounds if num_done is None else num_done, num_traced)
    if num_done is None:
        summary = {"rounds": num_rounds, "test_accuracies": {"0": 0.125}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
