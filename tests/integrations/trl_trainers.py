"""Trainers of TRL with a tiny model, which write down what happens. Nothing here imports JAX."""

import importlib
import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "experiments" / "integrations"))
GROUP_SIZE = 4


def make_rows(num_rows=100):
    rows = importlib.import_module("_tiny").make_rows().select(range(num_rows))
    return rows.add_column("index", list(range(num_rows)))


def is_even(completions, index, **kwargs):
    """Is right for about half of the completions, for few of some prompts."""
    words = [text.split()[:1] for text in completions]
    return [
        float(bool(word) and word[0].isdigit() and int(word[0]) % (2 + row % 3) == 0)
        for word, row in zip(words, index, strict=True)
    ]


def make_trainer(folder, events, kind="GRPOTrainer", reward_funcs=is_even, num_rows=100, **options):
    """Returns a trainer that appends to `events` what it generates for, trains on and updates."""
    tiny = importlib.import_module("_tiny")
    transformers = importlib.import_module("transformers")
    trl = importlib.import_module("trl")
    tokenizer = tiny.make_tokenizer()

    def recorded(func):
        def rewards(index, **kwargs):
            events.append(("rewards", list(index)))
            return func(index=index, **kwargs)

        rewards.__name__ = func.__name__
        return rewards

    class Updates(transformers.TrainerCallback):
        def on_optimizer_step(self, *args, **kwargs):
            events.append(("update", None))

    class Trainer(getattr(trl, kind)):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if self.model.training:
                texts = tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
                numbers = [text.replace("=", "").split(" + ") for text in texts]
                events.append(("train", [10 * int(first) + int(second) for first, second in numbers]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    arguments = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 2 * GROUP_SIZE,
        "num_generations": GROUP_SIZE,
        "max_completion_length": 2,
        "learning_rate": 1e-2,
        "beta": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    datasets = {name: options.pop(name) for name in ("train_dataset", "eval_dataset", "peft_config") if name in options}
    return Trainer(
        model=tiny.make_model(tokenizer, width=16),
        reward_funcs=[recorded(func) for func in (reward_funcs if isinstance(reward_funcs, list) else [reward_funcs])],
        args=getattr(trl, kind.replace("Trainer", "Config"))(**(arguments | options)),
        processing_class=tokenizer,
        callbacks=[Updates()],
        **({"train_dataset": make_rows(num_rows)} | datasets),
    )


def make_selector(events, num_prompts=100, method="binomial_hmm", **options):
    """Returns a selector that appends to `events` what it selects and observes."""
    from dps_jax import PromptSelector

    class Selector(PromptSelector):
        def select(self, *args, **kwargs):
            before = self.metrics()
            ids = super().select(*args, **kwargs)
            facts = [before["num_in_flight"], self.metrics()["num_rounds"], self.predict()["p_informative"].tolist()]
            events.append(("select", ids.tolist(), *facts))
            return ids

        def observe_rows(self, row_ids, row_is_correct):
            super().observe_rows(row_ids, row_is_correct)
            events.append(("observe", np.asarray(row_ids).tolist(), np.asarray(row_is_correct).tolist()))

    return Selector(num_prompts, method, group_size=GROUP_SIZE, **options)


def of_kind(events, kind):
    return [event for event in events if event[0] == kind]
