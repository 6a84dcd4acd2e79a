"""Prints the options of scripts and commands, as JSON by their names; started by test_documents.py.

Each is run with --help in this process, since most of the time of starting one goes into imports that all share.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import sys

ROOT = pathlib.Path(__file__).parents[1]
# In help() of tyro and argparse a line about an option begins with it, perhaps behind a frame or a short form.
OPTION_LINE = re.compile(r"^[\s│]*((?:-\w, )?--[a-z].*)", re.MULTILINE)


def options(name):
    """Returns the options of a script of experiments/, or of a module of dps_jax."""
    if name.endswith(".py"):
        run = lambda: runpy.run_path(str(ROOT / name), run_name="__main__")
        sys.path[0] = str((ROOT / name).parent)
    else:
        run = lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)
    sys.argv = [name, "--help"]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            run()
    except ModuleNotFoundError:  # the framework that the script trains with
        return re.findall(r"\badd(?:_argument)?\(\s*\"(--[\w.-]+)", (ROOT / name).read_text())
    # What follows several spaces is the explanation.
    firsts = [re.split(r" {2,}", line)[0] for line in OPTION_LINE.findall(printed.getvalue())]
    in_description = {"--import"} & set(printed.getvalue().split())
    return sorted({option for first in firsts for option in re.findall(r"--[\w.-]+", first)} | in_description)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "120"  # in wider ones tyro shows options in several columns
    print(json.dumps({name: options(name) for name in sys.argv[1:]}))
