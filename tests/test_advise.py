"""Advice from logs whose answer is known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dps_jax import advise, traces
from dps_jax.traces._format import Trace

ROOT = Path(__file__).parents[1]
NUM_PROMPTS, BATCH, GROUP = 60, 20, 8


def log(rates, num_rounds=40, seed=0, inclusion_prob=None):
    """Returns a trace of uniform visits to prompts of fixed success rates, [N]."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(NUM_PROMPTS)[:BATCH] for _ in range(num_rounds)])
    rounds = np.repeat(np.arange(num_rounds), BATCH)
    counts = np.full(rounds.size, GROUP)
    successes = rng.binomial(GROUP, rates[ids.ravel()])
    columns = [column.astype(np.int32) for column in (rounds, ids.ravel(), successes, counts)]
    return Trace(*columns, inclusion_prob=inclusion_prob)


def test_shares_and_factors_of_a_log_whose_useful_prompts_can_be_found():
    rates = np.where(np.arange(NUM_PROMPTS) < 15, 0.5, 0.0)
    found = advise.advise(log(rates), pool_factor=8, signals=(0.01,))
    # A quarter of the prompts is informative but for one group in 128; visits show which.
    assert abs(found.informative.mean - 0.25 * (1 - 2 / 2**GROUP)) < 0.04
    assert found.informative.low < 0.25 < found.informative.high
    assert found.selected.mean > 0.8
    assert (found.num_rounds, found.num_groups, found.num_prompts, found.group_size) == (40, 800, NUM_PROMPTS, GROUP)
    useful = lambda share: np.sqrt(BATCH * share * 0.01 / (1 + BATCH * share * 0.01))
    expected = useful(found.selected.mean) / useful(found.informative.mean)
    np.testing.assert_allclose(found.factors[0.01].mean, expected, rtol=1e-9)
    assert found.factors[0.01].low <= expected <= found.factors[0.01].high
    assert "shows no gain" not in advise.to_text(found)


def test_a_log_without_differences_shows_no_gain():
    found = advise.advise(log(np.full(NUM_PROMPTS, 0.06)))
    assert abs(found.selected.mean - found.informative.mean) < 0.12
    assert "this log shows no gain from selection" in advise.to_text(found)


def test_measured_ratios_are_those_of_the_arena():
    cells = json.loads((ROOT / "docs/results/arena.json").read_text())["cells"]
    shares, ratios = {}, {}
    for cell in cells:
        if cell["method"] == "uniform":
            shares.setdefault(cell["mix"], []).append(cell["effective_sample_ratio"])
        elif cell["method"] == "instructive":
            ratios.setdefault(cell["mix"], []).append(round(cell["ratio_to_uniform"], 2))
    found = {}
    for mix, of_sizes in shares.items():
        found.setdefault(round(float(np.mean(of_sizes)), 2), []).extend(ratios[mix])
    assert {share: (min(of_share), max(of_share)) for share, of_share in found.items()} == advise._MEASURED


@pytest.mark.parametrize(
    ("num_useful", "words"),
    [(5, "selection is likely to pay"), (20, "expect a small gain"), (40, "prefer uniform selection")],
)
def test_recommendation_follows_the_closest_measured_share(num_useful, words):
    text = advise.to_text(advise.advise(log(np.where(np.arange(NUM_PROMPTS) < num_useful, 0.5, 0.0))))
    assert words in text.splitlines()[-2]
    assert "warning" not in text


def test_log_of_a_run_with_another_method_comes_with_a_warning(tmp_path, capsys):
    traces.write_trace(tmp_path / "trace.npz", log(np.where(np.arange(NUM_PROMPTS) < 15, 0.5, 0.0)))
    outputs = []
    for method in ("mopps", "uniform"):
        (tmp_path / "config.json").write_text(json.dumps({"selector": {"method": method}}))
        advise.main(advise.Config(trace=tmp_path / "trace.npz"))
        outputs.append(capsys.readouterr().out)
    assert "warning: mopps selected the prompts of this run" in outputs[0].splitlines()[1]
    assert "in small runs with" not in outputs[0]
    assert "warning" not in outputs[1]
    assert "in small runs with" in outputs[1]


def test_inclusion_probabilities_give_back_the_share_of_uniform_selection():
    rates = np.where(np.arange(NUM_PROMPTS) < 30, 0.5, 0.0)
    rng = np.random.default_rng(1)
    # Every round 16 of the 30 useful prompts and 4 of the others: as many as in the other logs, for the same program.
    chance = np.where(np.arange(NUM_PROMPTS) < 30, 16 / 30, 4 / 30)
    picks = [np.append(rng.permutation(30)[:16], 30 + rng.permutation(30)[:4]) for _ in range(40)]
    rounds, ids = np.repeat(np.arange(40, dtype=np.int32), BATCH), np.concatenate(picks).astype(np.int32)
    counts = np.full(ids.size, GROUP, np.int32)
    trace = Trace(rounds, ids, rng.binomial(GROUP, rates[ids]).astype(np.int32), counts, inclusion_prob=chance[ids])
    found = advise.advise(trace)
    assert found.is_uniform_share
    assert abs(found.informative.mean - 0.5 * (1 - 2 / 2**GROUP)) < 0.05
    as_selected = advise.advise(trace._replace(inclusion_prob=None))
    assert not as_selected.is_uniform_share
    assert as_selected.informative.mean > 0.75


def test_what_selection_would_find_does_not_depend_on_what_was_logged():
    num_prompts, num_rounds = 400, 120
    rates = np.where(np.arange(num_prompts) < 40, 0.5, 0.0)
    found = []
    for seed, chance in enumerate((np.full(num_prompts, 0.2), np.where(rates > 0, 0.7, 0.15))):
        rng = np.random.default_rng(seed)
        rows = [(t, n) for t in range(num_rounds) for n in np.flatnonzero(rng.random(num_prompts) < chance)]
        rounds, ids = np.array(rows, np.int32).T
        successes = rng.binomial(GROUP, rates[ids]).astype(np.int32)
        counts = np.full(ids.size, GROUP, np.int32)
        found.append(advise.advise(Trace(rounds, ids, successes, counts, inclusion_prob=chance[ids]), pool_factor=4))
    uniform, picky = found
    assert abs(uniform.informative.mean - picky.informative.mean) < 0.02
    # The picky log shows useful prompts a little earlier.
    assert abs(uniform.selected.mean - picky.selected.mean) < 0.06
    # A tenth of the prompts is useful and a quarter is taken, so no more than two fifths can be.
    assert 0.3 < uniform.selected.mean < 0.42
    assert uniform.gain.low > 0


def test_progress_saturates():
    np.testing.assert_allclose(advise.progress([1, 100], 1.0), [np.sqrt(1 / 2), np.sqrt(100 / 101)])
    # Few groups of little signal: four times as many are worth twice as much.
    np.testing.assert_allclose(advise.progress(4, 1e-6) / advise.progress(1, 1e-6), 2, rtol=1e-5)


def test_the_command_reads_files_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "log.csv"
    traces.write_trace(path, log(np.linspace(0, 1, NUM_PROMPTS)))
    command = [sys.executable, "-m", "dps_jax.advise"]
    done = subprocess.run([*command, str(path), "--json"], capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["num_groups"] == 800
    assert set(printed["selected"]) == {"mean", "low", "high"}
    gone = subprocess.run([*command, str(tmp_path / "gone.csv")], capture_output=True, text=True, check=False)
    assert gone.returncode == 1
    assert "gone.csv" in gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_factor": 1}, r"pool_factor: expected an integer >= 2, got 1"),
        ({"batch_size": 0}, r"batch_size: expected an integer >= 1, got 0"),
        ({"signals": (0.0,)}, r"signals: expected finite numbers > 0, got 0\.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        advise.advise(log(np.zeros(NUM_PROMPTS), num_rounds=2), **options)


def test_groups_of_other_sizes_count_as_well():
    trace = log(np.linspace(0, 1, NUM_PROMPTS))
    counts = trace.counts.copy()
    counts[-1] = 16
    # Numbers of steps and hashes change nothing, and one group of 16 decides nothing.
    rows = Trace(10 * trace.rounds, 2**40 * trace.prompt_ids.astype(np.int64), trace.successes, counts)
    found = advise.advise(rows)
    assert (found.num_rounds, found.num_groups, found.group_size, found.is_one_size) == (40, 800, GROUP, False)
    is_informative = (trace.successes > 0) & (trace.successes < counts)
    assert found.informative.mean == pytest.approx(is_informative.mean())
    assert "800 groups of mostly 8 completions in 40 rounds" in advise.to_text(found)


def test_groups_of_one_completion_are_refused():
    trace = log(np.zeros(NUM_PROMPTS), num_rounds=2)
    with pytest.raises(ValueError, match=r"trace: expected groups of 2 completions or more"):
        advise.advise(trace._replace(successes=trace.successes * 0, counts=trace.counts * 0 + 1))
