"""Options of methods: errors that list them, their types, and methods of one's own."""

import inspect
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dps_jax
from dps_jax import selectors, types
from dps_jax.predictors import _outcomes
from dps_jax.selectors import _options as selector_options

METHODS = sorted(selectors.SELECTORS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("through", ["factory", "build", "prompt_selector"])
def test_an_unknown_option_lists_all_options_of_the_method(method, through):
    call = {
        "factory": lambda **options: selectors.SELECTORS[method](10, **options),
        "build": lambda **options: selectors.build(method, 10, **options),
        "prompt_selector": lambda **options: dps_jax.PromptSelector(10, method, **options),
    }[through]
    with pytest.raises(ValueError, match=r"expected options among .*, got decya$") as error:
        call(decya=0.5)
    listed = str(error.value).split("expected options among ")[1].split(", got ")[0].split(", ")
    own = inspect.signature(selectors.SELECTORS[method]).parameters
    named = {name for name, parameter in own.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert named <= set(listed)
    assert listed == sorted(selectors.option_names(method))
    if method != "uniform":
        assert set(listed) == named | set(selectors.Acquisition._fields)


def test_the_option_that_was_meant_is_among_the_listed():
    with pytest.raises(ValueError, match=r"options of dps: expected options among decay, .*, got decya"):
        selectors.dps(10, decya=0.5)
    with pytest.raises(ValueError, match=r"options of from_predictor: expected .* is_ordinal, .* mesh, .*, got messh"):
        selectors.from_predictor(10, coin(), messh=None)


# What no option of any method can be.
HOPELESS = {
    "a text": "a",
    "bytes": b"x",
    "an object": object(),
    "a function": len,
    "a dict": {},
    "a set": {1, 2},
    "a complex number": 1j,
    "a NaN": float("nan"),
    "an infinity": float("inf"),
    "ten to the thirty": 10**30,
    "a ragged list": [1, [2]],
    "a list of texts": [["a"]],
    "zeros": np.zeros((2, 2)),
}


@pytest.mark.parametrize("value", HOPELESS.values(), ids=HOPELESS)
@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_another_kind_is_refused_by_its_name(method, value):
    for option in selectors.option_names(method):
        with pytest.raises(ValueError, match=rf"^{option}: expected "):
            selectors.build(method, 10, **{option: value})
    with pytest.raises(ValueError, match=r"^num_prompts: expected "):
        selectors.build(method, value)


@pytest.mark.parametrize("value", HOPELESS.values(), ids=HOPELESS)
def test_an_argument_of_a_prompt_selector_of_another_kind_is_refused_by_its_name(value):
    for argument in ("num_prompts", "method", "seed", "keys", "device", "pool_factor"):
        with pytest.raises(ValueError, match=rf"^{argument}: expected "):
            dps_jax.PromptSelector(**{"num_prompts": 10, argument: value})
    selector = dps_jax.PromptSelector(10)
    observation = {"prompt_ids": [1], "successes": [2], "counts": [3]}
    calls = {
        "batch_size": (selector.select, {}),
        "candidates": (selector.select, {"batch_size": 2}),
        "commit": (selector.select, {"batch_size": 2}),
        "prior": (selector.set_prior, {}),
        "rewards": (selector.observe_rewards, {"prompt_ids": [1]}),
        "row_ids": (selector.observe_rows, {"row_is_correct": [1]}),
        "row_is_correct": (selector.observe_rows, {"row_ids": [1]}),
        **{name: (selector.observe, observation) for name in observation},
    }
    for argument, (call, others) in calls.items():
        with pytest.raises(ValueError, match=rf"^{argument}: expected "):
            call(**{**others, argument: value})


def test_the_types_of_options_are_those_of_their_checked_form():
    declared = typing.get_type_hints(selectors.AcquisitionOptions)
    assert set(declared) == set(selectors.Acquisition._fields)
    checked = typing.get_type_hints(selectors.Acquisition)
    assert declared == checked


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"uniform"}))
def test_signatures_have_every_option_once(method):
    factory = selectors.SELECTORS[method]
    annotation = inspect.signature(factory).parameters["acquisition"].annotation
    declared = getattr(selector_options, annotation.removeprefix("Unpack[").removesuffix("]"))
    own = [p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY]
    taken = set(typing.get_type_hints(declared))
    assert not taken & set(own)
    assert taken | set(own) == set(selectors.option_names(method))


def test_every_option_says_what_it_means():
    chain = [base for base in vars(selector_options).values() if typing.is_typeddict(base)]
    for name in selectors.Acquisition._fields:
        assert sum(f"\n      {name}: " in cls.__doc__ for cls in chain) == 1, name


@pytest.mark.parametrize("protocol", [types.Predictor, types.Selector])
def test_every_function_of_a_protocol_describes_itself(protocol):
    for name, hint in typing.get_type_hints(protocol).items():
        kinds = [kind for kind in typing.get_args(hint) or [hint] if kind is not type(None)]
        assert len(kinds) == 1, name
        assert typing.is_protocol(kinds[0]) if hasattr(typing, "is_protocol") else kinds[0]._is_protocol, name
        assert kinds[0].__call__.__doc__.startswith("Returns "), name
        assert f"`{kinds[0].__name__}`" in protocol.__doc__, name


class CoinState(typing.NamedTuple):
    correct: jax.Array
    wrong: jax.Array


def coin(group_size=8):
    """Returns a predictor as a user would write it: completions succeed at their rate so far."""

    def rates(state):
        return (state.correct + 1) / (state.correct + state.wrong + 2)

    def predict(state):
        return _outcomes.summarise(outcome_probs(state, jnp.arange(state.correct.shape[0])))

    def observe(state, ids, successes, counts, axis_name=None):
        targets = jnp.where((ids >= 0) & (counts > 0), ids, state.correct.shape[0])
        return CoinState(
            correct=state.correct.at[targets].add(successes, mode="drop"),
            wrong=state.wrong.at[targets].add(counts - successes, mode="drop"),
        )

    def outcome_probs(state, positions):
        m = jnp.arange(group_size + 1)[:, None]
        return jax.scipy.stats.binom.pmf(m, group_size, rates(state)[positions][None])

    return types.Predictor(
        init=lambda num_prompts, first_id=0: CoinState(jnp.zeros(num_prompts, int), jnp.zeros(num_prompts, int)),
        predict=predict,
        observe=observe,
        outcome_probs=outcome_probs,
    )


@pytest.fixture
def tossed():
    """A method that is registered while a test runs."""

    @selectors.register
    def tossed(num_prompts, *, group_size=8, mesh=None, **acquisition: typing.Unpack[selectors.AcquisitionOptions]):
        return selectors.from_predictor(num_prompts, coin(group_size), mesh=mesh, **acquisition)

    yield tossed
    del selectors.SELECTORS["tossed"]


def test_a_predictor_of_ones_own_becomes_a_method(tossed):
    assert selectors.option_names("tossed")[:2] == ["group_size", "mesh"]
    selector = dps_jax.PromptSelector(30, method="tossed", group_size=4, max_wait=20, quotas=[0.5], groups=[0] * 30)
    for _ in range(4):
        ids = selector.select(6, candidates=np.arange(20))
        selector.observe(ids, np.where(ids < 10, 2, 0), counts=4)
    selector.commit()
    prediction = selector.predict()
    assert prediction["success_rate"].shape == (30,)
    assert selector.metrics()["num_observed"] == 24
    with pytest.raises(ValueError, match=r"options of tossed: expected options among .*group_size.*, got size"):
        tossed(30, size=3)


def test_a_method_of_ones_own_picks_the_best(tossed):
    selector = tossed(30)
    state = selector.observe(selector.init(jax.random.key(0)), jnp.arange(5), jnp.arange(5) * 2, jnp.full(5, 8))
    _, info = selector.select(state, jax.random.key(0), 4)
    expected = np.sort(selector.predict(state).p_informative)[::-1][:4]
    np.testing.assert_array_equal(info.scores, expected)
    again = selector.from_portable(selector.to_portable(state))
    chex.assert_trees_all_equal(again, state)


def test_names_are_given_once(tossed):
    def dps(num_prompts):
        return selectors.uniform(num_prompts)

    with pytest.raises(ValueError, match=r"factory: expected a name that no other method has, got 'dps'"):
        selectors.register(dps)
    # The same one again, as in a notebook.
    selectors.register(tossed)


@pytest.mark.parametrize("method", sorted(selectors.SELECTORS))
def test_methods_can_be_exchanged(method):
    """What every method accepts: changing the method is changing its name."""
    assert {"group_size", "mesh", "max_wait", "quotas", "groups"} <= set(selectors.option_names(method))
    selectors.build(method, 20, group_size=4)
    with pytest.raises(ValueError, match="group_size: expected"):
        selectors.build(method, 20, group_size=0)
