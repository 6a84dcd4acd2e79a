"""Damaged runs come to the same end, or end with an error that names the file and the remedy."""

import dataclasses
import importlib
import json
import shutil

import pytest

from dps_jax import _files
from dps_jax.training import _checkpoints, _policy_files, _trainer
from dps_jax.training import _config as configs
from tests.training import runs


@pytest.fixture(autouse=True)
def _shared(monkeypatch, request):
    runs.share_programs(monkeypatch)
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")


@pytest.fixture(scope="module")
def halfway_and_whole(tmp_path_factory):
    """A run of four rounds, and one of six under the same options."""
    config = runs.tiny(tmp_path_factory.mktemp("whole"), eval_every=2)
    halfway = dataclasses.replace(config, out_dir=tmp_path_factory.mktemp("half"), num_rounds=4)
    with pytest.MonkeyPatch.context() as patch:
        runs.share_programs(patch)
        runs.run(config)
        runs.run(halfway)
    return halfway, config


@pytest.fixture
def damaged(halfway_and_whole, tmp_path) -> configs.TrainConfig:
    """A copy of the run of four rounds, that is to go on to six."""
    halfway, config = halfway_and_whole
    shutil.copytree(halfway.folder, tmp_path / "run")
    return dataclasses.replace(config, out_dir=tmp_path)


def outcome_of(script, what, config, whole):
    """Returns what the script says of a damage, and the error."""
    try:
        runs.run(config)
    except (ValueError, OSError, _checkpoints.CheckpointError, _trainer.TrainingError) as error:
        return script.judge(what, str(error), config.folder, whole.folder), str(error)
    return script.judge(what, None, config.folder, whole.folder), ""


# The script does all of them, to all files: one kind for each file, and all for those that no other file stands for.
KINDS = ("a flipped bit", "cut in half", "empty", "zeros", "deleted", "JSON, nested deeply")
FILES = (
    *("prompts.npz", "summary.json", "prior.json", "run.lock", "policy.safetensors", "policy_best.safetensors"),
    *("manifest.json of a checkpoint", "an array of a checkpoint", "_METADATA of a checkpoint"),
)
CASES = [(file, KINDS[index % len(KINDS)]) for index, file in enumerate(FILES)]
CASES += [(file, kind) for file in ("config.json", "metrics.jsonl", "trace.npz") for kind in KINDS]
CASES += [("checkpoints/", "deleted"), ("checkpoints/", "stray files and links")]


@pytest.mark.parametrize(("what", "kind"), CASES)
def test_damage_leads_to_the_same_end_or_is_named(halfway_and_whole, damaged, what, kind):
    script = importlib.import_module("reliability")
    assert set(KINDS) == set(script.KINDS)
    assert {*FILES, "config.json", "metrics.jsonl", "trace.npz"} == set(script.FILES)
    (spoil,) = [spoil for file, how, spoil in script.all_damages() if (file, how) == (what, kind)]
    spoil(damaged.folder)
    outcome, error = outcome_of(script, what, damaged, halfway_and_whole[1])
    if what in ("metrics.jsonl", "trace.npz"):
        assert outcome == "error that names the file"
        assert "back from a copy" in error or "restore it" in error or "put the file back" in error
        assert "unsafe" not in error
    else:
        assert outcome == "same end"


def test_stray_files_are_still_there(damaged):
    script = importlib.import_module("reliability")
    (spoil,) = [spoil for _, how, spoil in script.all_damages() if how == "stray files and links"]
    spoil(damaged.folder)
    runs.run(damaged)
    found = {path.name: path for path in (damaged.folder / "checkpoints").iterdir() if not path.is_dir()}
    assert set(found) == {
        "x.pending",
        "round_0000000002.pending.stray-1",
        "round_0000000006.pending.stray-1",
        "round_0000000006.stray-1",
    }
    assert all(path.is_symlink() or path.read_text() == "stray" for path in found.values())


def edit(path, change):
    """Writes the lines of metrics.jsonl after a change of their list."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def test_rounds_that_lack_or_come_twice_or_are_others_are_not_accepted(damaged):
    path = damaged.folder / "metrics.jsonl"
    whole = path.read_bytes()
    message = (
        r"metrics\.jsonl: expected the 4 rounds as they were when the checkpoint was written, got .*; put the file"
    )
    for change in (
        lambda lines: lines.pop(1),
        lambda lines: lines.insert(1, lines[1]),
        lambda lines: lines.__setitem__(1, lines[1].replace(b'"rollouts": 16', b'"rollouts": 17')),
    ):
        edit(path, change)
        with pytest.raises(ValueError, match=message):
            runs.run(damaged)
        path.write_bytes(whole)
    trace = dict(script_trace(damaged))
    script_trace(damaged, successes=trace["count"])
    with pytest.raises(
        ValueError, match=r"trace\.npz: expected rounds 0 to 3 as they were .* got others; put the file"
    ):
        runs.run(damaged)


def script_trace(config, **changes):
    """Returns the columns of the trace; writes it with some changed."""
    import numpy as np

    path = config.folder / "trace.npz"
    with np.load(path) as file:
        columns = dict(file)
    if changes:
        np.savez(path, **(columns | changes))
    return columns


def test_what_is_missing_is_told(damaged, halfway_and_whole):
    (damaged.folder / "config.json").unlink()
    _, text = runs.run(damaged)
    assert "config.json: expected the options of a run, got none" in text
    assert "it is written again, as the checkpoint has the options too" in text
    shutil.rmtree(damaged.folder / "checkpoints")
    _, text = runs.run(damaged)
    assert "no checkpoint is left of the 6 rounds in metrics.jsonl; the run begins again at round 0" in text
    runs.assert_same_end(damaged, halfway_and_whole[1])
    # Nothing is left that has the options.
    shutil.rmtree(damaged.folder / "checkpoints")
    (damaged.folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: .*There is no checkpoint either.*6 rounds; or start anew"):
        runs.run(damaged)


def test_options_changed_in_the_file_are_those_of_the_checkpoint(damaged, halfway_and_whole):
    path = damaged.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 5}))
    _, text = runs.run(damaged)
    assert "config.json: expected the options that the checkpoint has, got others; it is written again" in text
    runs.assert_same_end(damaged, halfway_and_whole[1])


def test_a_lost_best_policy_is_written_from_its_checkpoint(damaged):
    runs.run(damaged)
    path = damaged.folder / "policy_best.safetensors"
    whole = path.read_bytes()
    path.unlink()
    runs.run(damaged)
    assert path.read_bytes() == whole


def test_a_best_policy_that_is_lost_for_good_is_named(tmp_path):
    path, best = tmp_path / "policy_best.safetensors", {"round": 4, "checksum": 7}
    for state in ("is missing", "was changed"):
        message = rf"policy_best\.safetensors: expected the policy after 4 rounds, .* the file {state}, .*from a copy"
        with pytest.raises(ValueError, match=message):
            _policy_files.ensure_best(path, best, _files.checksum, lambda: None)
        path.write_bytes(b"another")
    _policy_files.ensure_best(path, best, _files.checksum, lambda: 7)
    intact = best | {"checksum": _files.checksum(path)}
    _policy_files.ensure_best(path, intact, _files.checksum, lambda: pytest.fail("it was intact"))


def test_weights_do_not_matter_once_there_is_a_checkpoint(damaged, halfway_and_whole):
    other = configs.ModelConfig(weights=damaged.folder / "policy.safetensors")
    _, text = runs.run(dataclasses.replace(damaged, model=other))
    assert "model: not the weights that this run was started from; not used" in text
    runs.assert_same_end(damaged, halfway_and_whole[1])
