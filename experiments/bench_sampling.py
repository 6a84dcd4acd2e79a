"""Measures sampling from a pretrained model, and `generate()` of transformers with the same weights and prompts.

Prompts are texts sampled from the model. Completions either have a fixed length or end at the first full stop;
in the second case, dps_jax drops completions that have ended from the batch. Needs the extras `text` and
`transformers`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _machine
import bench_loop
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from dps_jax import _checks, _cli, _json, models, text


@dataclasses.dataclass(frozen=True)
class Config:
    """The model and the sizes to measure."""

    model: tyro.conf.Positional[Path] = Path("runs/smollm2-135m-instruct")
    """Folder of a model, such as the one that experiments/get_smollm2.py writes."""
    batch_size: int = 8
    """Number of prompts, B."""
    group_size: int = 8
    """Number of completions per prompt, G."""
    prompt_lengths: tuple[int, ...] = (32, 256)
    """Prompt lengths to measure, P, in tokens."""
    completion_length: int = 64
    """Length of completions, T, in tokens; completions that end at a full stop may have four times as many."""
    repeats: int = 3
    """Number of timed runs of every case; dps_jax and transformers take turns."""
    out_dir: Path = Path("runs/bench_sampling")
    """Folder for results.json and table.md."""

    def __post_init__(self):
        for name in ("batch_size", "group_size", "completion_length", "repeats"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        for length in self.prompt_lengths:
            _checks.check_int("prompt_lengths", length, at_least=2)


class Case(NamedTuple):
    """A case to measure.

    Attributes:
      prompts: tokens of the prompts, int32 [B, P].
      completion_length: largest number of tokens of a completion, T.
      end_ids: tokens that end a completion.
      words: description for the table.
    """

    prompts: np.ndarray
    completion_length: int
    end_ids: tuple[int, ...]
    words: str


def ours(model: models.Decoder, case: Case, group_size: int) -> Callable[[], int]:
    """Returns a function that samples with dps_jax and returns the number of sampled tokens."""
    graphdef, params = nnx.split(model)
    sample = models.staged_sampler(
        functools.partial(nnx.merge, graphdef),
        group_size=group_size,
        completion_length=case.completion_length,
        end_ids=case.end_ids,
        pad_id=0,
        num_tokens=model.config.vocab_size,
    )
    is_token = np.ones(case.prompts.shape, bool)
    keys = jax.random.split(jax.random.key(0), case.prompts.shape[0])
    return lambda: int(sample(params, case.prompts, is_token, keys).mask.sum())


def theirs(folder: Path, case: Case, group_size: int) -> Callable[[], int]:
    """Returns a function that samples with transformers and returns the number of sampled tokens.

    Raises:
      ImportError: if torch or transformers is not installed.
    """
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.repeat(case.prompts, group_size, axis=0)).long()
    how = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=case.completion_length,
        eos_token_id=list(case.end_ids) or None,
        pad_token_id=0,
    )

    def generate() -> int:
        with torch.no_grad():
            sampled = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
        sampled = sampled[:, ids.shape[1] :].numpy()
        # Tokens after the first end token are padding.
        has_ended = np.cumsum(np.isin(sampled, case.end_ids), axis=1) - np.isin(sampled, case.end_ids) > 0
        return int((~has_ended).sum())

    return generate


def time_both(
    ours: Callable[[], int], theirs: Callable[[], int], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Returns the seconds and tokens of every run; the two run in turns, after one untimed run of each."""
    samplers = {"ours": ours, "transformers": theirs}
    tokens: dict[str, list[int]] = {name: [] for name in samplers}
    count = lambda name: tokens[name].append(samplers[name]())
    seconds = bench_loop.measure({name: functools.partial(count, name) for name in samplers}, repeats)
    # The first run compiles and is not timed.
    return seconds, {name: counts[1:] for name, counts in tokens.items()}


def make_cases(config: Config, model: models.Decoder) -> list[Case]:
    """Returns the cases to measure."""
    tokenizer = text.load_tokenizer(config.model)
    start = jnp.full((config.batch_size, 1), tokenizer.encode("The")[0], jnp.int32)
    longest = max(config.prompt_lengths)
    written = models.sample(
        model,
        start,
        jax.random.key(1),
        group_size=1,
        completion_length=longest,
        end_ids=(),
        pad_id=0,
        is_prompt_token=jnp.ones(start.shape, bool),
    ).tokens[:, 0]
    prompts = {length: np.asarray(written)[:, :length] for length in config.prompt_lengths}
    stops = tuple(sorted({tokenizer.encode(stop)[-1] for stop in (".", " .", "a.")}))
    length = config.completion_length
    fixed = [Case(found, length, (), f"P = {size}, T = {length}") for size, found in prompts.items()]
    words = f"P = {longest}, until a full stop, at most {4 * length}"
    return [*fixed, Case(prompts[longest], 4 * length, stops, words)]


def main(config: Config) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    machine = _machine.describe_machine()
    model = models.load_pretrained(config.model)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    rows = []
    for case in make_cases(config, model):
        console.print(f"timing {case.words}")
        seconds, tokens = time_both(
            ours(model, case, config.group_size), theirs(config.model, case, config.group_size), config.repeats
        )
        rates = {name: float(np.sum(tokens[name]) / np.sum(seconds[name])) for name in tokens}
        row = {"case": case.words, "tokens_per_s": rates, "ratio": rates["ours"] / rates["transformers"]}
        rows.append(row | {"tokens": tokens, "seconds": seconds})
    results = {
        "machine": machine | {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")},
        "model": config.model.name,
        "num_parameters": num_parameters,
        "batch_size": config.batch_size,
        "group_size": config.group_size,
        "measurements": rows,
    }
    table = Table("completions", "ours, tokens/s", "transformers, tokens/s", "ratio")
    lines = ["| completions | ours, tokens/s | transformers, tokens/s | ratio |", "|---|---:|---:|---:|"]
    for row in rows:
        cells = [row["case"], *(f"{row['tokens_per_s'][name]:,.0f}" for name in ("ours", "transformers"))]
        table.add_row(*cells, f"{row['ratio']:.1f}")
        lines.append(f"| {' | '.join(cells)} | {row['ratio']:.1f} |")
    lines += [
        "",
        f"{config.model.name}, {num_parameters:,} parameters in float32, B = {config.batch_size}, "
        f"G = {config.group_size}; {machine['cpu']}, {machine['cores']} cores; JAX {machine['jax']}, "
        f"torch {results['machine']['torch']}, transformers {results['machine']['transformers']}; {machine['date']}.",
    ]
    console.print(table)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _json.write(config.out_dir / "results.json", results, indent=2)
    (config.out_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
