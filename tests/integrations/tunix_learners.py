"""Learners of tunix with a tiny model, which write down what happens."""

import importlib
import pathlib
import sys

import numpy as np

from dps_jax import PromptSelector
from dps_jax.integrations.tunix import PromptStream

sys.path.append(str(pathlib.Path(__file__).parents[2] / "experiments" / "integrations"))
GROUP_SIZE = 4


def make_rows():
    return [row | {"index": index} for index, row in enumerate(importlib.import_module("_tiny_tunix").make_rows())]


def is_even(prompts, completions, index, **kwargs):
    """Is right for about half of the completions, for few of some prompts."""
    words = [text.split()[:1] for text in completions]
    return [
        float(bool(word) and word[0].isdigit() and int(word[0]) % (2 + row % 3) == 0)
        for word, row in zip(words, index, strict=True)
    ]


class Selector(PromptSelector):
    """Appends to `events` what it selects and observes."""

    events: list

    def select(self, *args, **kwargs):
        ids, figures = super().select(*args, **kwargs), self.metrics()
        facts = [figures["num_in_flight"], figures["num_rounds"], self.predict()["p_informative"].tolist()]
        self.events.append(("select", ids.tolist(), *facts))
        return ids

    def observe_rows(self, row_ids, row_is_correct):
        super().observe_rows(row_ids, row_is_correct)
        self.events.append(("observe", np.asarray(row_ids).tolist(), np.asarray(row_is_correct).tolist()))


def make_selector(events, num_prompts=100, method="instructive", **options):
    selector = Selector(num_prompts, method, group_size=GROUP_SIZE, device="cpu", **options)
    selector.events = events
    return selector


def make_stream(events, selector=None, rows=None, batch_size=2, num_batches=None):
    rows = make_rows() if rows is None else rows
    return PromptStream(selector or make_selector(events, len(rows)), rows, batch_size, num_batches)


def recorded(events, reward_fn):
    """Returns a reward function that appends to `events` what it is called for."""

    def rewards(prompts, completions, index, mode, **kwargs):
        rows = make_rows()
        assert list(prompts) == [rows[number % 1000]["prompts"] for number in index]
        events.append(("rewards", np.asarray(index).tolist(), mode))
        return reward_fn(prompts=prompts, completions=completions, index=index, mode=mode, **kwargs)

    rewards.__name__ = reward_fn.__name__
    return rewards


def make_learner(
    events, reward_fns, kind="GRPO", folder=None, save_every=3, max_to_keep=None, metric_fns=(), **options
):
    """Returns a learner that appends to `events` what it trains on and updates."""
    tiny, optax = importlib.import_module("_tiny_tunix"), importlib.import_module("optax")
    algorithm = {name: options.pop(name) for name in ("num_iterations",) if name in options}
    if kind == "GRPO":
        algorithm["beta"] = 0.0
    if folder is not None:
        checkpoint = importlib.import_module("orbax.checkpoint")
        options["checkpoint_root_directory"] = str(folder)
        options["checkpointing_options"] = checkpoint.CheckpointManagerOptions(
            save_interval_steps=save_every, max_to_keep=max_to_keep
        )
    cluster = tiny.make_cluster(optax.adam(1e-2), width=16, **({"max_steps": 6} | options))
    module = importlib.import_module(f"tunix.rl.grpo.{kind.lower()}_learner")
    config = getattr(module, f"{kind}Config")(num_generations=GROUP_SIZE, **algorithm)
    learner = getattr(module, f"{kind}Learner")(cluster, config, list(reward_fns), metric_fns=list(metric_fns))
    save, update = cluster.actor_trainer.checkpoint_manager.save, cluster.update_actor

    def recorded_save(step, *args, **kwargs):
        if not kwargs.get("force"):  # at the end, of a step that was recorded
            events.append(("update", step))
        return save(step, *args, **kwargs)

    def recorded_update(examples, *args, **kwargs):
        texts = [tiny.Tokenizer().decode(row[row > 2].tolist()) for row in np.asarray(examples[0].prompt_ids)]
        numbers = [text.replace(" =", "").split(" + ") for text in texts]
        events.append(("train", [10 * int(first) + int(second) for first, second in numbers]))
        return update(examples, *args, **kwargs)

    cluster.actor_trainer.checkpoint_manager.save = recorded_save
    cluster.update_actor = recorded_update
    return learner


def run(events, stream=None, reward_fn=is_even, threshold=None, eval_ds=None, others=(), is_attached=True, **options):
    """Trains, and returns learner and stream."""
    stream = stream or make_stream(events)
    reward_fns = [*others, stream.outcome(recorded(events, reward_fn), threshold)]
    learner = make_learner(events, reward_fns, metric_fns=[stream.metric_fn], **options)
    learner.logged = []
    learner.rl_cluster.with_external_metrics_logger(learner.logged.append)
    if is_attached:
        stream.attach(learner)
    learner.train(stream, eval_ds)
    return learner, stream


def of_kind(events, kind):
    return [event for event in events if event[0] == kind]
