"""One of two processes that train together; writes what happened in it to FOLDER/rank_NUMBER.json."""

import json
import os
import pathlib
import sys

from dps_jax.integrations.trl import attach
from tests.integrations.trl_trainers import make_selector, make_trainer


def main(folder):
    rank, events = int(os.environ["RANK"]), []
    # 12 completions of 3 prompts: the group of the second is split across the two.
    trainer = make_trainer(folder / "run", events, per_device_train_batch_size=6, save_strategy="steps", save_steps=6)
    attached = attach(trainer, make_selector(events) if rank == 0 else None)
    trainer.train()
    refusals = []
    for action in (lambda: trainer.train(str(folder / "none")), lambda: attach(trainer)):
        try:
            action()
        except ValueError as error:
            refusals.append(str(error))
    facts = {
        "events": events,
        "has_selector": attached is not None,
        "has_jax": "jax" in sys.modules,
        "weights": [parameter.sum().item() for parameter in trainer.model.parameters()],
        "refusals": refusals,
    }
    (folder / f"rank_{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    # At the end of an interpreter gloo's threads abort the process now and then, also of a rank without JAX.
    os._exit(0)
