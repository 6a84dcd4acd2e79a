"""Shows prompt selection in the parts of SkyRL that run without GPUs: its data set, its data loader and its batches.

    python experiments/integrations/skyrl_simulated.py
    python experiments/integrations/skyrl_simulated.py --method uniform

In a real run of SkyRL, put the mixin before its experiment class:

    class Experiment(SelectsPrompts, BasePPOExp):
        pass

Here the experiment has SkyRL's `PromptDataset` and a simulated generator, whose completions are correct at random. Most
of the 400 prompts are always or never solved; the others get easier each time that they are partially solved.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import random
import sys
import tempfile
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typing_extensions

from dps_jax import PromptSelector
from dps_jax.integrations.skyrl import SelectsPrompts

if sys.version_info < (3, 12):
    # SkyRL 0.3.0 requires only Python 3.11, but there pydantic refuses the TypedDict of `typing`.
    typing.TypedDict = typing_extensions.TypedDict  # pyright: ignore[reportAttributeAccessIssue]
NUM_PROMPTS = 400


class Base:
    """Stands in for SkyRL's BasePPOExp, whose models and engines need GPUs."""

    def __init__(self, cfg: Any, path: Path, method: str):
        self.cfg, self.path, self.method = cfg, path, method
        self.train_dataset = self.get_train_dataset()

    def get_train_dataset(self) -> Any:
        """Returns SkyRL's data set, without a tokenizer: no prompt is too long."""
        tokenizer = SimpleNamespace(apply_chat_template=lambda *args, **kwargs: [0])
        return importlib.import_module("skyrl.train.dataset").PromptDataset(str(self.path), tokenizer, 8, num_workers=0)

    def get_generator(self) -> Any:
        """Returns a simulated generator."""
        return Chance()


class Experiment(SelectsPrompts, Base):
    """An experiment that chooses its prompts."""

    def make_selector(self, num_prompts: int) -> PromptSelector:
        """Returns a selector with the method of the command line."""
        group_size = {} if self.method == "uniform" else {"group_size": self.cfg.generator.n_samples_per_prompt}
        return PromptSelector(num_prompts, self.method, seed=self.cfg.trainer.seed, device="cpu", **group_size)


class Chance:
    """A simulated generator with a success rate for each prompt."""

    def __init__(self):
        self.rng = random.Random(0)
        self.skills = [self.rng.choice([-0.5, -0.3, 0.2, 1.2]) + 0.2 * self.rng.random() for _ in range(NUM_PROMPTS)]

    async def generate(self, input_batch: Any) -> Any:
        """Returns the rewards of a batch, the only entry of SkyRL's output that is read here."""
        ids = [int(trajectory.instance_id) for trajectory in input_batch["trajectory_ids"]]
        return {"rewards": [float(self.rng.random() < self.skills[index]) for index in ids]}


def main(steps: int, batch_size: int, group_size: int, method: str) -> list[float]:
    """Runs steps, and returns the share of partially solved groups in each."""
    cfg: Any = SimpleNamespace(
        trainer=SimpleNamespace(seed=0, epochs=1, train_batch_size=batch_size, eval_batch_size=batch_size),
        generator=SimpleNamespace(n_samples_per_prompt=group_size),
        data=SimpleNamespace(dataloader=SimpleNamespace(num_workers=0, persistent_workers=False)),
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        rows = [{"prompt": [{"role": "user", "content": f"question {index}"}]} for index in range(NUM_PROMPTS)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        experiment = Experiment(cfg, path, method)
    generator = experiment.get_generator()
    build_dataloader = importlib.import_module("skyrl.train.utils.trainer_utils").build_dataloader
    prepare = importlib.import_module("skyrl.train.generators.utils").prepare_generator_input
    loader = build_dataloader(cfg, experiment.train_dataset)
    while len(ratios) < steps:
        for batch in loader:
            inputs, _ = prepare(batch, group_size, {}, "none", "train", len(ratios) + 1)
            rewards = asyncio.run(generator.generate(inputs))["rewards"]
            experiment.train_dataset.selector.commit()  # in SkyRL's trainer: a callback at the end of a step
            sums = [sum(rewards[first : first + group_size]) for first in range(0, len(rewards), group_size)]
            is_mixed = [0 < total < group_size for total in sums]
            for row, mixed in zip(batch, is_mixed, strict=True):  # here: the update
                generator.skills[int(row["uid"])] += 0.05 * mixed
            ratios.append(sum(is_mixed) / len(is_mixed))
            print(f"step {len(ratios)}: partially solved {ratios[-1]:.2f}")
            if len(ratios) == steps:
                break
    half = max(steps // 2, 1)
    print(f"partially solved in the second half: {sum(ratios[-half:]) / half:.2f}")
    return ratios


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps to run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts per step (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt (default: %(default)s)")
    parser.add_argument(
        "--method", default="instructive", help="selection method; uniform for comparison (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parsed()))
