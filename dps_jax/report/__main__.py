"""Writes a report on runs as one self-contained HTML page, which a browser shows without a server or a network.

    python -m dps_jax.report runs/train
    python -m dps_jax.report runs/train runs/uniform --out compared.html
    python -m dps_jax.report my/log.csv --threshold 0.5

Each RUN is the folder of a run of experiments/train.py or experiments/train_llm.py, which may be unfinished; or a
trace: a file or a folder in any format that docs/traces.md lists. For a trace, the page has only the parts that need no
metrics. The command does not change the runs.
"""

from __future__ import annotations

import sys

from dps_jax.integrations import _building


def run() -> None:
    """Runs the command; an error is printed as one line, with exit status 1."""
    _building.keep_jax_on_cpu()
    from dps_jax import _cli
    from dps_jax.report import _command

    try:
        config = _cli.cli(_command.Config, description=__doc__, prog="python -m dps_jax.report", may_import=True)
        print(_command.main(config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
