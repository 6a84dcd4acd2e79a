"""A dashboard of runs in one HTML page that loads nothing from outside: for a browser, without a service.

    python -m dps_jax.report runs/train
    python -m dps_jax.report runs/train runs/uniform --out compared.html
    python -m dps_jax.report my/log.csv --threshold 0.5

RUN is the folder of a run of experiments/train.py or experiments/train_llm.py, also of one that is still going on or
was killed, or a trace: a file or a folder in any format that docs/traces.md lists. A trace alone gives the part of the
page that needs no metrics. Folders and files are only read.
"""

from __future__ import annotations

import sys

from dps_jax.integrations import _building


def run() -> None:
    """Runs the command; an error is a line, and exit status 1."""
    _building.keep_jax_on_cpu()
    import tyro

    from dps_jax.report import _command

    try:
        print(_command.main(tyro.cli(_command.Config, description=__doc__)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
