"""Shows prompt selection inside verl: makes parquet files, prints the command line, and runs verl's loop on a CPU.

    python experiments/integrations/verl_run.py
    python experiments/integrations/verl_run.py --legacy --method binomial_hmm --steps 20

On a machine with GPUs, the printed command does the same with a model, once its paths name your files and your model.
Here the model and its completions are simulated (see _verl_cpu.py); verl's trainer, data set, replay buffer,
transfer queue and checkpoints are real. The requirements are in tests/integrations/requirements/verl.txt.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import shlex
import tempfile
from typing import Any

from _verl_cpu import OUR_CALLBACK, OUR_OPTIONS, OUR_V1_OPTIONS, composed, make_files, train_legacy, train_v1


def command(folder: pathlib.Path, options: list[str]) -> str:
    """Returns a command line of verl with the options that prompt selection adds."""
    ordinary = [
        "algorithm.adv_estimator=grpo",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/test.parquet",
        "actor_rollout_ref.model.path=MODEL",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=8",
    ]
    return " \\\n    ".join(["python3 -m verl.trainer.main_ppo", *map(shlex.quote, [*ordinary, *options])])


def main(steps: int, method: str, is_legacy: bool) -> list[tuple[Any, ...]]:
    """Trains, and returns the events of the run in order, such as rollouts and updates with their prompts."""
    events: list[tuple[Any, ...]] = []

    def notice(kind: str, rows: Any) -> None:
        events.append((kind, rows))
        if kind == "rollout":
            print("batch:", ", ".join(f"{row // 10} + {row % 10}" for row in dict.fromkeys(rows)), flush=True)

    options = [*OUR_OPTIONS, f"+data.dps_jax.method={method}", *([] if is_legacy else [*OUR_V1_OPTIONS, OUR_CALLBACK])]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_files(folder)
        print(command(folder, options), flush=True)
        config = composed(folder, [*options, f"trainer.total_training_steps={steps}"])
        if is_legacy:
            trainer = train_legacy(config, notice)
        else:
            ray, transfer_queue = importlib.import_module("ray"), importlib.import_module("transfer_queue")
            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
            config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1
            transfer_queue.init(config.transfer_queue)
            try:
                trainer = train_v1(config, notice)
            finally:
                transfer_queue.close()
                ray.shutdown()
    print(trainer.train_dataset.selector.metrics())
    return events


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="steps to train (default: %(default)s)")
    parser.add_argument("--method", default="instructive", help="selection method (default: %(default)s)")
    parser.add_argument(
        "--legacy", dest="is_legacy", action="store_true", help="use the legacy trainer, the only one before verl 0.9"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parsed()))
