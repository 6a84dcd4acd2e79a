"""A custom training loop with a DataLoader of PyTorch that returns selected prompts.

    python experiments/integrations/own_loop.py
    python experiments/integrations/own_loop.py --method uniform
    python experiments/integrations/own_loop.py --checkpoint runs/own_loop.pt
    python experiments/integrations/own_loop.py --checkpoint runs/own_loop.pt --num-rounds 120    # continues

The learner is simulated, so that the loop runs in seconds and needs no model: the success rate of a prompt rises with
each informative completion group of the prompt. Replace `Learner` by your policy. The script needs torch.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dps_jax import PromptSelector
from dps_jax.integrations import _building
from dps_jax.integrations.torch import SelectedPrompts


class Learner:
    """A simulated learner: the logit of the success rate of a prompt rises with each of its informative groups."""

    def __init__(self, num_prompts: int, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.logits = 3 * torch.randn(num_prompts, generator=self.generator) - 4

    def rollout(self, prompt_ids: torch.Tensor, group_size: int) -> torch.Tensor:
        """Returns rewards of completions, 0 or 1, [B, G]."""
        rates = torch.sigmoid(self.logits[prompt_ids])[:, None].expand(-1, group_size)
        return torch.bernoulli(rates, generator=self.generator)

    def update(self, prompt_ids: torch.Tensor, rewards: torch.Tensor) -> None:
        """Raises the logits as if a policy were trained on the completions: most those of informative groups."""
        self.logits[prompt_ids] += 0.8 * is_informative(rewards)
        self.logits += 0.01

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the logits and the state of the random generator."""
        return {"logits": self.logits, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores a state that `state_dict` returned."""
        self.logits = state["logits"]
        self.generator.set_state(state["generator"])


def is_informative(rewards: torch.Tensor) -> torch.Tensor:
    """Returns which completion groups are partially solved, bool [B], from rewards [B, G]."""
    return (rewards.sum(dim=1) > 0) & (rewards.sum(dim=1) < rewards.shape[1])


def save(path: Path, prompts: SelectedPrompts, learner: Learner, shares: Sequence[float]) -> None:
    """Writes a checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"prompts": prompts.state_dict(), "learner": learner.state_dict(), "shares": list(shares)}, partial)
    os.replace(partial, path)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Runs the rounds, and returns the share of informative groups of each; prints means of ten rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--method", default=_building.DEFAULT_METHOD, help="selection method of PromptSelector (default: %(default)s)"
    )
    parser.add_argument("--num-prompts", type=int, default=2000, help="number of prompts (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts per round (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt (default: %(default)s)")
    parser.add_argument("--num-rounds", type=int, default=60, help="number of rounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--checkpoint", type=Path, help="checkpoint that is read first, if it exists, and written at the end"
    )
    options = parser.parse_args(arguments)

    learner = Learner(options.num_prompts, options.seed)
    rows = [{"prompt": f"question {number}"} for number in range(options.num_prompts)]
    known = {} if options.method in ("uniform", "history") else {"group_size": options.group_size}
    selector = PromptSelector(len(rows), options.method, seed=options.seed, device="cpu", **known)
    prompts = SelectedPrompts(selector, rows, options.batch_size)
    shares: list[float] = []
    if options.checkpoint is not None and options.checkpoint.exists():
        checkpoint = torch.load(options.checkpoint)
        prompts.load_state_dict(checkpoint["prompts"])
        learner.load_state_dict(checkpoint["learner"])
        shares = checkpoint["shares"]

    rows_chosen: Any = prompts  # map-style, without torch's base class
    loader = torch.utils.data.DataLoader(rows_chosen, batch_size=options.batch_size, drop_last=True)
    while len(shares) < options.num_rounds:
        for batch in loader:
            rewards = learner.rollout(batch["prompt_id"], options.group_size)
            learner.update(batch["prompt_id"], rewards)
            prompts.observe(batch["prompt_id"], rewards)
            shares.append(is_informative(rewards).float().mean().item())
            if len(shares) % 10 == 0:
                print(f"round {len(shares):>4}: {100 * np.mean(shares[-10:]):.0f} % of the groups were informative")
            if len(shares) == options.num_rounds:
                break
    rate = torch.sigmoid(learner.logits).mean().item()
    print(f"all rounds: {100 * np.mean(shares):.0f} % informative; mean success rate of all prompts {rate:.3f}")
    if options.checkpoint is not None:
        save(options.checkpoint, prompts, learner, shares)
    return shares


if __name__ == "__main__":
    _building.keep_jax_on_cpu()
    main()
