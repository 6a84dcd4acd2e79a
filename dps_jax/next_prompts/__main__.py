"""The prompts of the next epoch from the rollouts of the last one, file in and file out: for any trainer.

    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz
    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz --rollouts log.jsonl
    python -m dps_jax.next_prompts --prompts data.jsonl --out next.jsonl --rollouts out/completions --key prompt

Train on the file that is written, then call again with the log of what was rolled out. Logs are those that
`python -m dps_jax.advise` reads (docs/traces.md). They name prompts by the number of the row, from 0 on, or by what
stands in the column --key of the data file, also where a chat template stands around it; in a file that has changed,
what is known of a prompt goes with its key.
"""

from __future__ import annotations

import sys

from dps_jax.integrations import _building


def run() -> None:
    """Runs the command; an error is a line, and exit status 1."""
    _building.keep_jax_on_cpu()
    import tyro

    from dps_jax.next_prompts import _command

    try:
        config = tyro.cli(_command.Config, description=__doc__)
        print(_command.to_text(config, _command.main(config)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
