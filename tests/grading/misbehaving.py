"""A grader that does what the completion says; only for tests."""

import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction

# A process inherits its pipes under the numbers that they have in the process that starts it, which may be high.
MAX_DESCRIPTORS = 4096


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


class Pair:
    """Like a scalar of NumPy or JAX."""

    shape = ()

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


def hold_the_lock():
    re.match("(a+)+$", "a" * 60 + "b")


def ignore_signals():
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        if number != signal.SIGCHLD:
            signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def print_much():
    for _ in range(40):
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr)
        os.write(1, b"\0" * 100_000)
    return sys.stdin.read() == ""


def write_everywhere():
    for descriptor in range(3, MAX_DESCRIPTORS):
        try:
            os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    return True


def fork():
    os.fork()
    return True


def eat_memory():
    blocks = []
    while True:
        blocks.append(bytes(1 << 26))


def raise_(error):
    raise error


ACTIONS = {
    "right": lambda: True,
    "wrong": lambda: False,
    "half": lambda: 0.5,
    "whole": lambda: 1,
    "fraction": lambda: Fraction(3, 4),
    "pair": lambda: (False, 0.25),
    "scalar": lambda: Pair(True),
    "sleep": lambda: time.sleep(600),
    "nap": lambda: time.sleep(0.3) or True,
    "hold": hold_the_lock,
    "ignore": ignore_signals,
    "raise": lambda: raise_(KeyError("gone")),
    "unprintable": lambda: raise_(Unprintable()),
    "exit": lambda: sys.exit(0),
    "interrupt": lambda: raise_(KeyboardInterrupt()),
    "recursion": lambda: eval("f(f)", {"f": lambda f: f(f)}),
    "nan": lambda: float("nan"),
    "infinite": lambda: float("-inf"),
    "huge": lambda: 10**400,
    "digits": lambda: 10**5000,
    "too large": lambda: 1e39,
    "text": lambda: "yes",
    "none": lambda: None,
    "triple": lambda: (True, 1.0, 1.0),
    "odd pair": lambda: (1.0, True),
    "_exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "close": lambda: os.closerange(3, MAX_DESCRIPTORS),
    "write": write_everywhere,
    "print": print_much,
    "fork": fork,
    "memory": eat_memory,
    "chdir": lambda: os.chdir("/") or True,
    "jax": lambda: "jax" in sys.modules or "dps_jax" in sys.modules,
    "main": lambda: sys.modules["__main__"].__file__.endswith("worker.py"),
}


def grade(completion, answer, info):
    if completion.startswith("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(answer, "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        completion = completion.removeprefix("child ")
    return ACTIONS[completion]()


grade.rules = "Do as the completion says."


def with_option(completion, answer, info, *, suffix):
    return completion == answer + suffix and info.get("level", 0) == 0


class Graders:
    @staticmethod
    def nested(completion, answer, info):
        return True


wrong_rules = lambda completion, answer, info: True
wrong_rules.rules = 3
no_function = 3
