"""Shows the data source and observer of dps_jax for slime, with a simulated engine in place of slime's.

    PYTHONPATH=path/to/slime python experiments/integrations/slime_simulated.py
    PYTHONPATH=path/to/slime python experiments/integrations/slime_simulated.py --method uniform

A real run of slime needs GPUs, and two options instead of code:

    --data-source-path dps_jax.integrations.slime.DataSource
    --rollout-all-samples-process-path dps_jax.integrations.slime.observe

Here slime's data source returns samples as in a rollout of slime. Completions are correct at random. Most of the 400
prompts are always or never solved; the others get easier each time that they are partially solved.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace

from dps_jax.integrations.slime import DataSource, observe

NUM_PROMPTS = 400


def make_args(folder: Path, batch_size: int, group_size: int, method: str) -> SimpleNamespace:
    """Writes a file of prompts, and returns the arguments of slime that a data source reads."""
    rows = [{"input": f"question {index}", "label": str(index)} for index in range(NUM_PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nothing = "dump_details rollout_max_prompt_len multimodal_keys tool_key load buffer_filter_path reward_key"
    return SimpleNamespace(
        **dict.fromkeys(nothing.split()),
        prompt_data=str(folder / "prompts.jsonl"),
        input_key="input",
        label_key="label",
        metadata_key="metadata",
        hf_checkpoint=str(make_tokenizer(folder / "tokenizer")),
        apply_chat_template=False,
        apply_chat_template_kwargs={},
        rollout_global_dataset=True,
        rollout_shuffle=False,
        rollout_seed=42,
        rollout_batch_size=batch_size,
        over_sampling_batch_size=batch_size,
        n_samples_per_prompt=group_size,
        partial_rollout=False,
        save=str(folder / "checkpoints"),
        rollout_all_samples_process_path="dps_jax.integrations.slime.observe",
        dps_method=method,
    )


def make_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer that slime can read, and returns its folder."""
    folder.mkdir()
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "question": 1}, "unk_token": "<unk>"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokenizer = {"version": "1.0", **parts, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def main(rollouts: int, batch_size: int, group_size: int, method: str) -> list[float]:
    """Runs rollouts, and returns the share of partially solved groups in each."""
    rng = random.Random(0)
    skills = [rng.choice([-0.5, -0.3, 0.2, 1.2]) + 0.2 * rng.random() for _ in range(NUM_PROMPTS)]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        args = make_args(Path(folder), batch_size, group_size, method)
        source = DataSource(args)
        for rollout_id in range(rollouts):
            groups = source.get_samples(args.rollout_batch_size)
            for group in groups:  # here: the engine and the rewards of slime
                for sample in group:
                    sample.reward = float(rng.random() < skills[int(sample.label)])
                    sample.status = type(sample.status).COMPLETED
            observe(args, groups, source.get_samples)
            is_mixed = [0 < sum(sample.reward for sample in group) < group_size for group in groups]
            for group, mixed in zip(groups, is_mixed, strict=True):  # here: the update
                skills[int(group[0].label)] += 0.05 * mixed
            source.save(rollout_id)
            ratios.append(sum(is_mixed) / len(groups))
            print(f"rollout {rollout_id}: partially solved {ratios[-1]:.2f}")
    half = max(rollouts // 2, 1)
    print(f"partially solved in the second half: {sum(ratios[-half:]) / half:.2f}")
    return ratios


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=40, help="rollouts to run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts per rollout (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt (default: %(default)s)")
    parser.add_argument(
        "--method", default="instructive", help="selection method; uniform for comparison (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parsed()))
