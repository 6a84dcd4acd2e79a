"""The example of a loop with PyTorch: selection finds more informative groups, and a run goes on where it was."""

import importlib

import numpy as np
import pytest


@pytest.fixture
def own_loop(monkeypatch, request):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments" / "integrations")
    return importlib.import_module("own_loop")


SMALL = ["--num-prompts", "400", "--batch-size", "32", "--method", "binomial_hmm"]


def test_a_run_goes_on_where_it_was(own_loop, tmp_path):
    whole = own_loop.main([*SMALL, "--num-rounds", "30"])
    checkpoint = ["--checkpoint", str(tmp_path / "runs" / "run.pt")]  # the folder does not exist yet
    own_loop.main([*SMALL, *checkpoint, "--num-rounds", "14"])
    assert own_loop.main([*SMALL, *checkpoint, "--num-rounds", "30"]) == whole


def test_selection_finds_more_informative_groups(own_loop, capsys):
    chosen = own_loop.main([*SMALL, "--num-rounds", "30"])
    uniform = own_loop.main([*SMALL, "--num-rounds", "30", "--method", "uniform"])
    assert np.mean(chosen[10:]) > 1.2 * np.mean(uniform[10:])
    assert "round   30" in capsys.readouterr().out
