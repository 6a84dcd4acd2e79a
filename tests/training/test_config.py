import ast
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from dps_jax import selectors
from dps_jax.selectors import _option_text as method_options
from dps_jax.training import _config as configs
from dps_jax.training import _options as run_options
from dps_jax.training import _selection, _setup
from tests.training import runs

NAN, INF = math.nan, math.inf
ROOT = Path(__file__).parents[2]
PARTS = {
    "task": configs.TaskConfig,
    "model": configs.ModelConfig,
    "selector": configs.SelectorConfig,
    "rollout": configs.RolloutConfig,
    "learner": configs.LearnerConfig,
}
COUNT = "expected an integer >= 1"
SHARE = r"expected a number in \[0\.0, 1\.0\]"
BAD_NUMBERS = [
    *((f"task.{name}", value, COUNT) for name in ("num_train", "num_test") for value in (0, -1, 2.0, NAN, True)),
    *((f"task.{name}", value, SHARE) for name in ("format_reward", "broken") for value in (-0.1, 1.1, NAN, INF, "a")),
    *(
        (f"task.{name}", ((2, 2, weight),), "expected .*weight > 0")
        for name in ("levels", "test_levels")
        for weight in (0.0, -1.0, NAN, INF)
    ),
    ("task.levels", (), "expected one or more of"),
    ("selector.pool_factor", -1, "expected an integer >= 0"),
    ("selector.pool_factor", 0.5, "expected an integer >= 0"),
    *(("selector.pool_share", value, SHARE) for value in (-0.1, 1.1, NAN)),
    ("selector.refit_every", -1, "expected an integer >= 0"),
    ("selector.refit_window", 1, "expected an integer >= 2"),
    ("selector.temperature", INF, "expected a finite number >= 0"),
    ("selector.temperature", NAN, "expected a finite number >= 0"),
    ("selector.temperature_pool", 0.0, "expected a finite number > 0"),
    ("selector.explore", 1.0, r"expected a finite number >= 0 and < 1, got 1\.0; it is a share of a batch"),
    ("selector.explore", NAN, r"expected a finite number >= 0 and < 1, got nan; it is a share of a batch"),
    *(("selector.optimism", value, "expected") for value in (-1.0, NAN, INF)),
    *(("selector.hardness", value, "expected") for value in (-1.0, NAN, INF)),
    ("selector.max_wait", 0, COUNT),
    *((f"rollout.{name}", 0, COUNT) for name in ("batch_size", "group_size", "max_batches")),
    *(("rollout.top_p", value, "expected a finite number > 0 and <= 1") for value in (0.0, -0.5, 1.01, NAN, INF)),
    *(("rollout.temperature", value, "expected a finite number > 0") for value in (0.0, -1.0, NAN, INF)),
    *((f"learner.{name}", value, COUNT) for name in ("num_minibatches", "num_epochs") for value in (0, -2, 1.5, NAN)),
    *(
        (f"learner.{name}", value, "expected a finite number >= 0")
        for name in ("learning_rate", "kl_coef", "entropy_coef", "weight_decay", "rate_by_share")
        for value in (-1e-3, NAN, INF, -INF, None, "1", True)
    ),
    *(("learner.clip_low", value, SHARE) for value in (-0.2, 1.5, NAN)),
    *(("learner.clip_high", value, "expected a number >= 0, .*infinity turns clipping off") for value in (-0.2, NAN)),
    *(("learner.max_grad_norm", value, "expected a number > 0, .*infinity turns") for value in (0.0, -1.0, NAN, -INF)),
    *(("seed", value, "expected an integer >= 0 and <= 4294967295") for value in (-1, 2**32, 0.5)),
    *(
        (name, value, COUNT)
        for name in ("num_rounds", "eval_every", "eval_samples", "checkpoint_every", "keep_last")
        for value in (0, -1, 1.5)
    ),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_NUMBERS)
def test_bad_numbers_are_refused_by_name_and_value(field, value, message):
    part, _, name = field.rpartition(".")
    make = PARTS.get(part, configs.TrainConfig)
    with pytest.raises(ValueError, match=f"^{field}: {message}") as error:
        make(**{name: value})
    if not isinstance(value, tuple):
        assert f"got {value!r}" in str(error.value)


HOPELESS = (b"x", object(), len, {1, 2}, 1j, math.nan, math.inf, [1, [2]], [["a"]], np.zeros((2, 2)))


@pytest.mark.parametrize("part", ["", *PARTS])
def test_values_of_another_kind_are_refused_by_name(part):
    make = PARTS.get(part, configs.TrainConfig)
    # Infinity turns these off.
    may_be_infinite = ("clip_high", "max_grad_norm")
    for field in dataclasses.fields(make):
        for value in HOPELESS:
            if not (field.name in may_be_infinite and value is math.inf):
                with pytest.raises(ValueError, match=rf"^{part}\.?{field.name}: expected "):
                    make(**{field.name: value})


@pytest.mark.parametrize("part", ["", *PARTS])
def test_no_count_is_larger_than_int32(part):
    make = PARTS.get(part, configs.TrainConfig)
    whole = [field.name for field in dataclasses.fields(make) if field.type in ("int", "int | None")]
    for name in whole:
        with pytest.raises(ValueError, match=rf"^{part}\.?{name}: expected "):
            make(**{name: 2**32})


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("learner", {"clip_high": INF, "max_grad_norm": INF, "learning_rate": 0.0, "clip_low": 1, "kl_coef": 0}),
        ("rollout", {"top_p": 1, "temperature": 1e-3}),
        ("selector", {"method": "dps", "temperature": 0}),
    ],
)
def test_numbers_at_the_edge_are_taken(part, changes):
    assert PARTS[part](**changes)


# A value that is not the default, of every option that can be given as text.
VALUES = {
    "decay": "0.5",
    "decays": "[0.9, 1.0]",
    "epoch_size": "30",
    "explore": "0.1",
    "hardness": "0.5",
    "initial": "[0.2, 0.5, 0.3]",
    "is_compact": "true",
    "max_wait": "13",
    "num_states": "5",
    "optimism": "0",
    "prior": "local",
    "prior_count": "0.7",
    "prior_failures": "2",
    "prior_mean": "-0.5",
    "prior_successes": "1.5",
    "prior_variance": "3",
    "process_noise": "0.1",
    "quotas": "[0.5]",
    "rank_by": "variance",
    "seed": "3",
    "temperature": "0.5",
    "temperature_pool": "16",
    "thompson": "True",
    "value": "informative",
}
# What one option needs beside it.
BESIDE = {"explore": ("temperature=0.5",), "temperature_pool": ("temperature=0.5",)}


def words_of(method, name):
    beside = BESIDE.get(name, ())
    if name in ("temperature", "explore", "temperature_pool") and method in ("history", "mopps", "queue"):
        beside = (*beside, "value=informative")
    return (f"{name}={VALUES[name]}", *beside)


@pytest.mark.parametrize("method", selectors.SELECTORS)
def test_every_option_of_every_method_is_reached(method):
    for name in method_options.names_in_text(method):
        if name == "group_size" or (name == "thompson" and method not in ("dps", "mopps", "binomial_hmm")):
            continue
        config = configs.SelectorConfig(method=method, pool_factor=0, options=words_of(method, name))
        expected = VALUES[name] if name in ("prior", "rank_by", "value") else method_options.literal(VALUES[name])
        assert config.method_options()[name] == expected
    with pytest.raises(ValueError, match=rf"selector\.options of method '{method}': expected options among .*max_wait"):
        configs.SelectorConfig(method=method, options=("optimizm=1",))


def test_options_are_words_on_the_command_line():
    words = ["optimism=0", "max_wait=120", "quotas=[0.5, 0.25]"]
    args = ["--selector.method", "binomial_hmm", "--selector.pool-factor", "0", "--selector.options", *words]
    config = tyro.cli(configs.TrainConfig, args=args)
    assert config.selector.options == tuple(words)
    assert config.selector.method_options() == {"optimism": 0, "max_wait": 120, "quotas": [0.5, 0.25]}
    assert run_options.to_json(config)["selector"]["options"] == words


def test_literals():
    cases = {"1": 1, "1e-3": 1e-3, "true": True, "null": None, "None": None, "(1, 2)": (1, 2), "local": "local"}
    for text, value in cases.items():
        assert method_options.literal(text) == value
    assert method_options.parse(["a = 1", "b=c=d"]) == {"a": 1, "b": "c=d"}


BAD_OPTIONS = [
    ("dps", {"options": ("decay",)}, r"selector\.options: expected words NAME=VALUE, got 'decay'"),
    ("dps", {"options": ("=1",)}, r"selector\.options: expected words NAME=VALUE, got '=1'"),
    ("dps", {"options": ("decay=1", "decay=0")}, r"selector\.options: expected every option once, got 'decay' twice"),
    (
        "dps",
        {"options": ("decay=0.1",), "decay": 0.2},
        r"selector\.options: expected no 'decay', got 0\.1; selector\.decay = 0\.2 is given as well; give one of them",
    ),
    ("dps", {"options": ("optimism=1",)}, r"of method 'dps': expected options among .*decay, explore.* got optimism"),
    ("mopps", {"options": ("prior_successes=-1",)}, r"selector\.options: prior_successes: expected .* got -1"),
    ("dps", {"options": ("thompson=no",)}, r"selector\.options: thompson: expected True or False, got 'no'"),
    ("dps", {"options": ("temperature=hot",)}, r"selector\.options: temperature: expected a number, got 'hot'"),
    ("dps", {"options": ("hardness=None",)}, r"selector\.options: hardness: expected a number, got None"),
    (
        "binomial_hmm",
        {"options": ("decays=0.5",)},
        r"selector\.options: decays: expected one or more numbers in \(0, 1\], got 0\.5",
    ),
    ("dps", {"options": ("group_size=4",)}, r"expected no 'group_size', got 4; it is rollout\.group_size"),
    (
        "uniform",
        {"options": ("quotas=[0.5, 0.6]",)},
        r"selector\.options: quotas: expected shares .* got \[0\.5, 0\.6\]",
    ),
    ("uniform", {"options": ("max_wait=9",)}, r"selector\.pool_factor: expected 0 along with selector\.max_wait = 9"),
    *(
        ("shared_net", {"options": (f"{name}=[1]",)}, rf"expected no '{name}', got \[1\]; it has one value per prompt")
        for name in method_options.PER_PROMPT
    ),
]


@pytest.mark.parametrize(("method", "changes", "message"), BAD_OPTIONS)
def test_bad_options_are_refused(method, changes, message):
    with pytest.raises(ValueError, match=message):
        configs.SelectorConfig(method=method, **changes)


def test_a_wait_given_as_a_word_is_checked_against_the_batch(tmp_path):
    selector = configs.SelectorConfig(method="dps", pool_factor=0, options=("max_wait=12",))
    with pytest.raises(ValueError, match=r"selector\.max_wait: expected at least num_prompts / batch_size = 13 .* 12"):
        runs.tiny(tmp_path, selector=selector)


def test_options_reach_the_selector(tmp_path):
    selector = configs.SelectorConfig(method="mopps", options=("prior_successes=3", "prior_failures=1"))
    config = runs.tiny(tmp_path, selector=selector)
    parts = _setup.build(config)
    _, options = _selection.selector_options(config, _setup.known_prompts(parts.task, parts.problems))
    assert (options["prior_successes"], options["prior_failures"]) == (3, 1)
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(0))
    rate = selectors.build("mopps", 50, **options).predict(state.selector, np.arange(3)).success_rate
    np.testing.assert_allclose(rate, 0.75, rtol=1e-6)


def test_the_start_of_the_hidden_states_is_part_of_the_prior():
    config = configs.SelectorConfig(method="dps", options=("initial=[0.2, 0.5, 0.3]",))
    np.testing.assert_allclose(config.resolved_prior().initial_probs, [0.2, 0.5, 0.3])


def test_quotas_are_of_the_levels_of_the_task(tmp_path):
    levels = ((2, 1, 0.8), (2, 2, 0.2))
    task = configs.TaskConfig(num_train=50, num_test=8, levels=levels, broken=0.0)
    make = lambda quotas, **changes: runs.tiny(
        tmp_path,
        task=task,
        selector=configs.SelectorConfig(method="uniform", pool_factor=0, options=(f"quotas={quotas}",), **changes),
    )
    parts = _setup.build(make([0, 0.75]))
    state = jax.jit(parts.round.init)(parts.params, jax.random.key(0))
    ids = np.asarray(parts.round.select(state).ids)
    assert (parts.problems.groups[ids] == 1).sum() >= 3
    with pytest.raises(ValueError, match=r"selector\.options: expected quotas for the 2 prompt groups .* got \[1\]"):
        _setup.build(make([1]))
    with pytest.raises(ValueError, match=r"selector\.side_information: expected 'groups' or 'all' along with quotas"):
        _setup.build(make([0, 1], side_information="none"))


def test_options_take_part_in_resuming(tmp_path):
    config = runs.tiny(tmp_path, selector=configs.SelectorConfig(method="dps", options=("decay=0.5",)))
    saved = json.loads(json.dumps(run_options.to_json(config)))
    run_options.check_same(config, saved)
    other = runs.tiny(tmp_path, selector=configs.SelectorConfig(method="dps", options=("decay=0.6",)))
    with pytest.raises(ValueError, match=r"resume: .*selector\.options = \['decay=0\.6'\] \(was \['decay=0\.5'\]\)"):
        run_options.check_same(other, saved)
    # A run that was saved before there were options had none.
    del saved["selector"]["options"]
    run_options.check_same(runs.tiny(tmp_path, selector=configs.SelectorConfig(method="dps", pool_factor=32)), saved)


RANDOM_OR_NOT = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.5, "value": "informative"},
    {"max_wait": 40},
    {"quotas": [0.5], "groups": [0] * 8},
]


@pytest.mark.parametrize("method", selectors.SELECTORS)
def test_selections_with_inclusion_probabilities_are_known_without_selecting(method):
    for options in RANDOM_OR_NOT:
        if not set(options) <= set(selectors.option_names(method)):
            continue
        selector = selectors.build(method, 8, **options)
        select = lambda seed, selector=selector: selector.select(
            selector.init(jax.random.key(seed)), jax.random.key(seed), 2
        )[1]
        found = jax.eval_shape(select, 0).inclusion_probs is not None
        assert method_options.has_inclusion_probs(method, options) == found, options


# No device is there, and nothing is traced.
WITHOUT_JAX = """
import jax
import dps_jax.training._config as configs
from dps_jax import selectors

def forbidden(*args, **options):
    raise AssertionError("a config ran JAX")

for name in ("jit", "eval_shape", "make_jaxpr", "vmap", "shard_map"):
    setattr(jax, name, forbidden)
for method in selectors.SELECTORS:
    for words in {words}.get(method, ()):
        configs.SelectorConfig(method=method, pool_factor=0, options=words)
    selector = configs.SelectorConfig(method=method)
    selector.has_inclusion_probs()
    for task in configs.tasks.TASKS:
        configs.TrainConfig(task=configs.TaskConfig(name=task), selector=selector)
weights = configs.LearnerConfig(inclusion_weights="self-normalised")
configs.TrainConfig(selector=configs.SelectorConfig(method="dps", temperature=0.5, refit_every=3), learner=weights)
print("built")
"""


def test_configs_are_built_without_jax():
    words = {
        method: [
            words_of(method, name)
            for name in method_options.names_in_text(method)
            if name not in ("group_size", "thompson")
        ]
        for method in selectors.SELECTORS
    }
    assert ast.literal_eval(repr(words)) == words
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "none"}
    program = WITHOUT_JAX.replace("{words}", repr(words))
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "built\n", done.stderr


@pytest.mark.parametrize("out_dir", ["some/runs", Path("some/runs")])
def test_the_folder_of_all_runs_may_be_a_text(out_dir):
    assert configs.TrainConfig(out_dir=out_dir, name="one").folder == Path("some/runs/one")
