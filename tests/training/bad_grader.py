"""A grader that hangs, raises, and returns what is no grade; it imports nothing that takes long."""

import time


def grade(completion, answer, info):
    if info["group"] == "large":
        time.sleep(60)
    if answer == "2":
        raise RuntimeError("on purpose")
    return float("nan") if len(completion) > 1 else 0.5
