"""Chooses the prompts of the next epoch by the rollouts of the last one, from files to a file, for any trainer.

    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz
    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz --rollouts log.jsonl
    python -m dps_jax.next_prompts --prompts data.jsonl --out next.jsonl --rollouts out/completions --key prompt

Train on the file that is written, then run the command again with the log of the rollouts. Logs may have any format
that docs/traces.md lists. They identify a prompt by the number of its row, from 0 on, or by its entry in the column
--key of the data file, which may be surrounded by a chat template in the log. With --key the data file may change
between calls: the statistics of a prompt follow its key.
"""

from __future__ import annotations

import sys

from dps_jax.integrations import _building


def run() -> None:
    """Runs the command; an error is printed as one line, with exit status 1."""
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
