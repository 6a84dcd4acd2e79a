"""The comparison on policies that share facts, at sizes of seconds."""

import importlib
import json

import numpy as np
import pytest
import tyro


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("bench_teaching")


def tiny(script, folder, **changes):
    sizes = {"num_prompts": (200,), "num_rounds": 9, "batch_size": 8, "num_seeds": 3, "pool_factor": 4}
    methods = ("uniform", "dps", "oracle_i")
    return script.Config(**{"mixes": ("typical",), "methods": methods, "out_dir": folder} | sizes | changes)


def test_defaults_and_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Config, args=["--help"], description=script.__doc__)
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert tyro.cli(script.Config, args=[]) == script.Config()


def test_results_and_table_are_written_and_not_measured_again(script, tmp_path, monkeypatch):
    config = tiny(script, tmp_path)
    results = script.main(config)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    found = results["found"]["typical, 200"]
    assert list(found) == ["uniform", "dps", "oracle_i"]
    assert np.shape(found["dps"]["curve"]) == (3, 2)
    assert "minus_reference" not in found["dps"]
    gap = found["oracle_i"]["minus_reference"]
    expected = np.mean(np.subtract(found["oracle_i"]["area"], found["dps"]["area"]))
    assert gap["mean"] == pytest.approx(expected)
    assert gap["interval"][0] < gap["mean"] < gap["interval"][1]
    assert "| oracle_i | " in (tmp_path / "table.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(script, "measure", lambda *_: pytest.fail("was measured again"))
        assert script.main(config)["found"] == results["found"]
    # Another setting is another part.
    assert script.part_path(config, "typical", 200, "dps") != script.part_path(
        tiny(script, tmp_path, learning_rate=0.02), "typical", 200, "dps"
    )


def test_methods_are_read_from_text(script):
    assert script.parse_method("binomial_hmm:temperature=1,value=informative,groups") == (
        "binomial_hmm",
        {"temperature": 1, "value": "informative", "groups": True},
    )
    assert script.parse_method("binomial_hmm:decays=(0.9,1.0), explore=None") == (
        "binomial_hmm",
        {"decays": (0.9, 1.0), "explore": None},
    )
    assert script.parse_method("dps") == ("dps", {})
    sizes = lambda method: script._sizes(script.Config(), method)["pool_factor"]
    assert [sizes(method) for method in ("dps", "dps:pool_factor=4", "oracle_i")] == [8, 4, 8]


def test_groups_and_features_reach_the_selector(script, monkeypatch):
    given = {}
    monkeypatch.setattr(script.selectors, "build", lambda name, num_prompts, **options: given.update(options))
    problems = script._shared_facts.draw_problems(script._shared_facts.MIXES["lean"], 50)
    script.build_method("binomial_hmm:groups,features,temperature=1,pool_factor=4")(problems)
    np.testing.assert_array_equal(given["groups"], problems.groups)
    np.testing.assert_array_equal(given["features"], problems.features)
    assert given["temperature"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("greedy",)}, r"methods: expected one of .*'dps'.* got 'greedy'"),
        ({"methods": ("dps:speed=1",)}, r"options of method 'dps': expected options among .* got speed"),
        ({"methods": ("mopps:features",)}, r"options of method 'mopps': expected options among .* got features"),
        (
            {"methods": ("dps:decay",)},
            r"methods: expected option=value, groups or features in 'dps:decay', got 'decay'",
        ),
        ({"methods": ("ds_free:groups",)}, r"methods: expected no options of the oracle 'ds_free', got 'groups'"),
        ({"mixes": ("dense",)}, r"mixes: expected one of .* got 'dense'"),
        ({"num_seeds": 1}, r"num_seeds: expected an integer >= 2, got 1"),
        ({"num_prompts": (4,)}, r"num_prompts: expected an integer >= 8, got 4"),
    ],
)
def test_bad_options(script, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(script, tmp_path, **changes)
