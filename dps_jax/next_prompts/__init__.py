"""A command that chooses the prompts of the next epoch from the rollouts of the last one, for any trainer.

    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz --rollouts log.jsonl

It reads a data file and logs of rollouts, and writes a data file; `--help` lists its options.
"""
