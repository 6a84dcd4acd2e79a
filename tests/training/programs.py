"""Programs of these tests that need a number of devices, or several processes, of their own."""

import os
import pathlib
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent


def free_port():
    """Returns a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(num_devices, program, arguments):
    env = dict(os.environ, PYTHONPATH=str(HERE.parents[1]), JAX_PLATFORMS="cpu", JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_together(num_devices, program, *arguments, limit_s=600):
    """Returns exit code, output and errors of programs that run side by side, one for each list of arguments.

    None of them is left running, whatever happens.
    """
    started, until = [], time.monotonic() + limit_s
    try:
        started += [_start(num_devices, program, one) for one in arguments]
        found = []
        for process in started:
            output, errors = process.communicate(timeout=max(until - time.monotonic(), 1))
            found.append((process.returncode, output, errors))
        return found
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(num_devices, program, *arguments, limit_s=600):
    """Returns what a program has printed."""
    ((code, output, errors),) = run_together(num_devices, program, arguments, limit_s=limit_s)
    assert code == 0, errors[-3000:]
    return output
