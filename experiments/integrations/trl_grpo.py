"""Trains a tiny model on sums with TRL's GRPOTrainer, on prompts that dps_jax chooses; half a minute on a CPU.

    pip install '.[trl]'
    python experiments/integrations/trl_grpo.py
    python experiments/integrations/trl_grpo.py --steps 60 --method binomial_hmm

The model (2 layers, random weights) and its tokenizer are created by the script; nothing is downloaded. The selection
takes two lines: the import of `attach`, and its call in main(). Replace the model, the data set and the reward function
by yours.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import tempfile
from typing import Any

from _tiny import accuracy, make_model, make_rows, make_tokenizer
from trl import GRPOConfig, GRPOTrainer

from dps_jax import PromptSelector, selectors
from dps_jax.integrations.trl import attach


class Shown(PromptSelector):
    """A selector that prints the prompts it selects, and the effective sample ratio of the batch before."""

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the prompts of the next generation batch."""
        ids, figures = super().select(*args, **kwargs), self.metrics()
        if figures["num_rounds"]:
            print(f"  partially solved: {figures['effective_sample_ratio']:.2f}", end="")
            print(f" (predicted: {figures['predicted_informative']:.2f})")
        print(f"batch {self.state_dict()['num_batches']}: {', '.join(f'{i // 10} + {i % 10}' for i in ids)}")
        return ids


def main(steps: int, batch_size: int, group_size: int, method: str) -> list[dict[str, float]]:
    """Trains, and returns the entries of the trainer's log that have metrics of the selector."""
    tokenizer, rows = make_tokenizer(), make_rows()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size * group_size,
            num_generations=group_size,
            max_completion_length=2,
            learning_rate=3e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(make_model(tokenizer), accuracy, config, rows, processing_class=tokenizer)
        options: dict[str, Any] = {"group_size": group_size} if "group_size" in selectors.option_names(method) else {}
        attach(trainer, Shown(len(rows), method, device="cpu", **options))  # or only attach(trainer)
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "dps/effective_sample_ratio" in entry]
    for name, part in (("first", log[: steps // 2]), ("second", log[steps // 2 :])):
        mean = lambda key, part=part: sum(entry[key] for entry in part) / max(len(part), 1)
        print(
            f"{name} half: effective sample ratio {mean('dps/effective_sample_ratio'):.2f}, "
            f"accuracy on what was selected {mean('reward'):.2f}"
        )
    return log


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps to train (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts per step (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt (default: %(default)s)")
    parser.add_argument(
        "--method", default="instructive", help="selection method; uniform for comparison (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parsed()))
