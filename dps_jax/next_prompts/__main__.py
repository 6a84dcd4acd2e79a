"""Chooses the prompts of the next epoch from the rollouts of the last one. Works on files, for any trainer.

    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz
    python -m dps_jax.next_prompts --prompts data.parquet --out next.parquet --state state.npz --rollouts log.jsonl
    python -m dps_jax.next_prompts --prompts data.jsonl --out next.jsonl --rollouts out/completions --key prompt

Train on the file that the command writes, then run the command again with the log of the rollouts. Logs may have any
format that docs/traces.md lists. Logs identify a prompt by its row number, from 0 on, or by its entry in the column of
the data file that --key names; in the log, a chat template may surround this entry. With --key the data file may change
between calls: a prompt that stays in the file keeps what was learned about it.
"""

from __future__ import annotations

import sys

from dps_jax.integrations import _building


def run() -> None:
    """Runs the command; an error is printed as one line, with exit status 1."""
    _building.keep_jax_on_cpu()
    from dps_jax import _cli
    from dps_jax.next_prompts import _command

    try:
        config = _cli.cli(_command.Config, description=__doc__, prog="python -m dps_jax.next_prompts", may_import=True)
        print(_command.to_text(config, _command.main(config)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
