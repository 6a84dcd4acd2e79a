"""Writes data/golden.npz: logits and greedy completions of `transformers` for the models of golden.py.

In an environment with torch and transformers (2.13 and 5.24 wrote what is there), from the root of the repository:
python -m tests.models.make_golden
"""

import pathlib
import tempfile

import numpy as np
import torch
import transformers

from tests.models import golden

# The best token is this much better than the next, in nats: rounding does not change it.
_MIN_GAP = 2e-3


def measured(config, seed):
    """Returns logits, greedy tokens, and the smallest gap between the best two tokens."""
    with tempfile.TemporaryDirectory() as folder:
        golden.write(pathlib.Path(folder), config, seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    row = torch.from_numpy(golden.ROW)[None]
    logits = model(row).logits[0].numpy()[golden.POSITIONS]
    completions, gaps = [], []
    for prompt in golden.PROMPTS:
        tokens = torch.from_numpy(prompt)[None]
        for _ in range(golden.NUM_GREEDY):
            best = torch.topk(model(tokens).logits[0, -1], 2)
            gaps.append(float(best.values[0] - best.values[1]))
            tokens = torch.cat([tokens, best.indices[:1][None]], dim=1)
        completions.append(tokens[0, len(prompt) :].numpy())
    return logits, np.stack(completions), min(gaps)


def main():
    """Measures all cases, with the first seeds that leave no doubt about a token."""
    found = {"seeds": [], "logits": [], "greedy": []}
    for name, config in golden.CASES.items():
        for seed in range(100):
            logits, greedy, gap = measured(config, seed)
            if gap > _MIN_GAP:
                break
        else:
            raise RuntimeError(f"{name}: every seed has a tie")
        print(f"{name}: seed {seed}, gap {gap:.2g}, spread {logits.std():.2f}, tokens {len(np.unique(greedy))}")
        for key, value in zip(found, (seed, logits, greedy), strict=True):
            found[key].append(value)
    golden.PATH.parent.mkdir(exist_ok=True)
    kinds = {"seeds": np.int32, "logits": np.float32, "greedy": np.uint8}
    arrays = {key: np.asarray(value, kinds[key]) for key, value in found.items()}
    np.savez_compressed(golden.PATH, names=np.array(list(golden.CASES)), **arrays)


if __name__ == "__main__":
    with torch.no_grad():
        torch.set_num_threads(1)
        main()
