"""Likelihoods of the models against float64 sums over all paths, and densities against numpyro's own."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import potential_energy
from scipy import stats

from dps_jax import priors
from dps_jax.hmm import emissions
from dps_jax.priors._density import density
from dps_jax.priors._models import distributions_of_features
from dps_jax.priors._parts import StateSpace, numpyro_model
from dps_jax.traces import Trace
from tests.reference import loop_filter

NUM_ROUNDS, NUM_PROMPTS, NUM_GROUPS = 4, 5, 2
GROUPS = [1, -1, 0, 1, 1]
# K is not the same for both, nor equal to another size.
NUM_STATES = {"exact": 3, "beta-binomial": 4}
MODELS = tuple(priors.MODELS)


def random_trace(seed):
    """Returns a trace with missing rounds, groups of 2 to 8 completions, every class of outcome."""
    rng = np.random.default_rng(seed)
    rows = [(t, n) for t in range(NUM_ROUNDS) for n in range(NUM_PROMPTS) if rng.random() < 0.6 or t == n % NUM_ROUNDS]
    counts = rng.integers(2, 9, len(rows))
    successes = np.where(rng.random(len(rows)) < 0.4, rng.integers(0, 2, len(rows)) * counts, rng.integers(0, counts))
    rounds, ids = np.array(rows).T
    return Trace(*(column.astype(np.int32) for column in (rounds, ids, successes, counts)))


TRACE = random_trace(0)
FEATURES = np.random.default_rng(1).normal(size=(NUM_PROMPTS, 2)).astype(np.float32)


def all_outcomes():
    return priors.prepare(TRACE, groups=GROUPS, features=FEATURES)


def rows_of_trace():
    """Returns {(round, prompt): (successes, count)}."""
    return {(t, n): (m, g) for t, n, m, g in zip(*(column.tolist() for column in TRACE[:4]), strict=True)}


def kinds(is_split):
    return ("", "trained_") if is_split else ("",)


def random_sites(name, emission, is_split, seed=3):
    """Returns a value for every site, float32 as models get them."""
    rng, num = np.random.default_rng(seed), NUM_STATES[emission]
    probs = lambda *lead: rng.dirichlet(np.full(num, 0.9), lead) * 0.97 + 0.03 / num
    sites = {}
    if name != "covariates":
        sites["initial_probs"] = probs()
    for kind in kinds(is_split):
        if name == "shared":
            sites[f"{kind}transition_matrix"] = probs(num)
        elif name == "covariates":
            sites[f"{kind}stationary_intercept"] = rng.normal(size=num - 1)
            sites[f"{kind}mobility"] = rng.uniform(0.1, 0.9, num)
        else:
            sites[f"{kind}mean_rows"] = probs(num)
            sites[f"{kind}strength_units"] = rng.normal(size=num)
        if name == "hierarchical":
            sites[f"{kind}rows"] = probs(NUM_PROMPTS, num)
        if name == "grouped":
            sites[f"{kind}group_rows"] = probs(NUM_GROUPS, num)
    if name == "grouped":
        sites |= {"initial_strength_units": rng.normal(), "group_initial": probs(NUM_GROUPS)}
    if name == "covariates":
        sites["initial_intercept"] = rng.normal(size=num - 1)
        for distribution in ("initial", "stationary"):
            sites |= {
                f"{distribution}_scale": rng.uniform(0.5, 1.5),
                f"{distribution}_units": rng.normal(size=(2, num - 1)),
            }
    if name == "online":
        sites["decay"] = 0.83
    if emission == "beta-binomial":
        sites |= {"rate_gaps": rng.dirichlet(np.full(num + 1, 4.0)), "precision_units": 0.3}
    return {name: jnp.asarray(value, jnp.float32) for name, value in sites.items()}


def likelihood_of(emission, sites):
    """Returns (successes, count) -> p(successes | state) without binomial coefficients, K numbers."""
    if emission == "exact":
        return lambda successes, count: loop_filter.exact_likelihood(3, successes, count)
    rates, precision = np.cumsum(sites["rate_gaps"])[:-1], 20 * math.exp(sites["precision_units"])

    def likelihood(successes, count):
        pmf = stats.betabinom.pmf(successes, count, rates * precision, (1 - rates) * precision)
        return (pmf / math.comb(count, successes)).tolist()

    return likelihood


def softmax_distribution(features, sites, intercept, weights):
    logits = sites[f"{intercept}_intercept"] + sites[f"{weights}_scale"] * (features @ sites[f"{weights}_units"])
    odds = np.exp(np.concatenate([[0.0], logits]))
    return odds / odds.sum()


def stationary_distribution(matrix):
    """Returns the distribution that a matrix keeps, by linear algebra."""
    size = len(matrix)
    system = np.concatenate([matrix.T - np.eye(size), np.ones((1, size))])
    return np.linalg.lstsq(system, np.eye(size + 1)[-1], rcond=None)[0]


def distributions_of_prompt(name, sites, prompt, is_split):
    """Returns initial_probs [K] and a matrix [K, K] per kind of move, as the docstrings of the models say."""
    if name == "shared":
        return sites["initial_probs"], [sites[f"{kind}transition_matrix"] for kind in kinds(is_split)]
    if name == "hierarchical":
        return sites["initial_probs"], [sites[f"{kind}rows"][prompt] for kind in kinds(is_split)]
    if name == "grouped":
        group = GROUPS[prompt]
        if group < 0:
            return sites["initial_probs"], [sites[f"{kind}mean_rows"] for kind in kinds(is_split)]
        return sites["group_initial"][group], [sites[f"{kind}group_rows"][group] for kind in kinds(is_split)]
    features = FEATURES[prompt].astype(np.float64)
    matrices = []
    for kind in kinds(is_split):
        mobility = sites[f"{kind}mobility"]
        stationary = softmax_distribution(features, sites, f"{kind}stationary", "stationary")
        # Who moves, moves to j with a probability in proportion to mobility[j] * stationary[j]: flows are balanced.
        flows = np.outer(mobility * stationary, mobility * stationary) / np.dot(mobility, stationary)
        matrix = flows / stationary[:, None] + np.diag(1 - mobility)
        np.testing.assert_allclose(stationary_distribution(matrix), stationary, atol=1e-12)
        matrices.append(matrix)
    return softmax_distribution(features, sites, "initial", "initial"), matrices


def enumerated(initial_probs, matrices, likelihood, seen):
    """Returns the log of the sum over all paths of one prompt; the last matrix moves out of rounds with an outcome."""
    total = 0.0
    for path in itertools.product(range(len(initial_probs)), repeat=NUM_ROUNDS):
        prob = initial_probs[path[0]]
        for t, state in enumerate(path):
            if t:
                prob *= matrices[-1 if t - 1 in seen else 0][path[t - 1]][state]
            if t in seen:
                prob *= likelihood(*seen[t])[state]
        total += prob
    return math.log(total)


def expected_log_evidence(name, emission, is_split, sites):
    sites = {site: np.asarray(value, np.float64) for site, value in sites.items()}
    likelihood, rows = likelihood_of(emission, sites), rows_of_trace()
    if name != "online":
        found = []
        for n in range(NUM_PROMPTS):
            seen = {t: outcome for (t, prompt), outcome in rows.items() if prompt == n}
            found.append(enumerated(*distributions_of_prompt(name, sites, n, is_split), likelihood, seen))
        return found
    counts = [
        10 * np.exp(sites[f"{kind}strength_units"])[:, None] * sites[f"{kind}mean_rows"] for kind in kinds(is_split)
    ]
    start = (NUM_PROMPTS, sites["initial_probs"], counts[0], float(sites["decay"]), likelihood)
    oracle = loop_filter.LoopFilter(*start, trained_counts=counts[1] if is_split else None)
    found = np.zeros(NUM_PROMPTS)
    for t in range(NUM_ROUNDS):
        seen = {n: outcome for (index, n), outcome in rows.items() if index == t}
        for n, outcome in seen.items():
            found[n] += math.log(np.dot(oracle.predicted_probs()[:, n], likelihood(*outcome)))
        oracle.observe(seen)
    return found


def build(name, emission, is_split):
    return priors.build(name, all_outcomes(), emission=emission, num_states=NUM_STATES[emission], is_split=is_split)


@pytest.mark.parametrize("is_split", [False, True], ids=["one", "split"])
@pytest.mark.parametrize("emission", ["exact", "beta-binomial"])
@pytest.mark.parametrize("name", MODELS)
def test_log_evidence_matches_a_sum_over_all_paths(name, emission, is_split):
    model, sites = build(name, emission, is_split), random_sites(name, emission, is_split)
    found = jax.jit(model.log_evidence)(sites, all_outcomes())
    expected = expected_log_evidence(name, emission, is_split, sites)
    # Four rounds of float32 logs of gamma functions of up to 50: 4 * 4 * 50 * 6e-8.
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("name", ["shared", "online"])
def test_under_x64_evidence_is_in_64_bits(name):
    model, sites = build(name, "exact", False), random_sites(name, "exact", False)
    expected = expected_log_evidence(name, "exact", False, sites)
    with jax.enable_x64(True):
        wide = {site: jnp.asarray(value, jnp.float64) for site, value in sites.items()}
        found = jax.jit(model.log_evidence)(wide, all_outcomes())
    assert found.dtype == jnp.float64
    # Hundreds of times closer than float32 comes.
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["shared", "online"])
def test_a_transposed_matrix_would_be_noticed(name):
    sites = random_sites(name, "exact", False)
    matrix = "transition_matrix" if name == "shared" else "mean_rows"
    turned = sites | {matrix: sites[matrix].T / sites[matrix].sum(axis=0)[:, None]}
    expected = expected_log_evidence(name, "exact", False, sites)
    assert np.max(np.abs(np.subtract(expected, expected_log_evidence(name, "exact", False, turned)))) > 0.1


@pytest.mark.parametrize("precision", [None, 7.0])
def test_a_given_emission_is_taken_as_known(precision):
    rates = np.array([0.2, 0.5, 0.9])
    model = priors.shared(emission=emissions.binomial(rates.tolist(), precision))
    sites = random_sites("shared", "exact", False)
    values = {name: np.asarray(value, np.float64) for name, value in sites.items()}

    def likelihood(successes, count):
        if precision is None:
            return loop_filter.binomial_likelihood(rates, successes, count)
        distribution = stats.betabinom.pmf(successes, count, rates * precision, (1 - rates) * precision)
        return distribution / math.comb(count, successes)

    rows = rows_of_trace()
    expected = [
        enumerated(
            values["initial_probs"],
            [values["transition_matrix"]],
            likelihood,
            {t: outcome for (t, prompt), outcome in rows.items() if prompt == n},
        )
        for n in range(NUM_PROMPTS)
    ]
    found = jax.jit(model.log_evidence)(sites, all_outcomes())
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert "success_rates" not in model.parameters(sites)


@pytest.mark.parametrize("emission", ["exact", "binomial", "beta-binomial"])
def test_parameters_are_what_sites_stand_for(emission):
    outcomes = all_outcomes()
    model = priors.online(emission=emission)
    sites = random_sites("online", "exact", False)
    if emission != "exact":
        sites["rate_gaps"] = jnp.array([0.1, 0.2, 0.3, 0.4])
    if emission == "beta-binomial":
        sites["precision_units"] = jnp.array(-0.5)
    found = model.parameters(sites)
    expected = 10 * np.exp(sites["strength_units"])[:, None] * np.asarray(sites["mean_rows"])
    np.testing.assert_allclose(found["concentration"], expected, rtol=1e-5)
    assert ("success_rates" in found) == (emission != "exact")
    assert ("precision" in found) == (emission == "beta-binomial")
    prior = model.to_prior({name: np.asarray(value, np.float64) for name, value in found.items()}, outcomes)
    np.testing.assert_allclose(prior.concentration, expected, rtol=1e-5)
    assert float(prior.decay) == pytest.approx(0.83)
    if emission != "exact":
        np.testing.assert_allclose(prior.emission.success_rates, [0.1, 0.3, 0.6], rtol=1e-5)
    if emission == "beta-binomial":
        assert prior.emission.precision == pytest.approx(20 * math.exp(-0.5), rel=1e-5)


@pytest.mark.parametrize("num_states", [2, 3, 5])
def test_stationary_laws_are_those_of_the_regression(num_states):
    rng = np.random.default_rng(5)
    space = StateSpace(num_states, "exact", is_split=True)
    parameters = {
        "initial_intercept": rng.normal(size=num_states - 1),
        "stationary_intercept": rng.normal(size=num_states - 1),
        "trained_stationary_intercept": rng.normal(size=num_states - 1),
        "initial_weights": rng.normal(size=(2, num_states - 1)),
        "stationary_weights": rng.normal(size=(2, num_states - 1)),
        "mobility": rng.uniform(0.05, 0.9, num_states),
        "trained_mobility": rng.uniform(0.05, 0.9, num_states),
    }
    initial, matrices = distributions_of_features(parameters, FEATURES, space)

    def regression(name, weights):
        logits = FEATURES @ parameters[f"{weights}_weights"] + parameters[f"{name}_intercept"]
        odds = np.concatenate([np.ones((NUM_PROMPTS, 1)), np.exp(logits)], axis=1)
        return odds / odds.sum(axis=1, keepdims=True)

    np.testing.assert_allclose(initial.T, regression("initial", "initial"), atol=1e-5)
    for kind, matrix in zip(space.kinds, matrices, strict=True):
        # One minus a diagonal of up to 0.95 in float32, solved by least squares: 1e-7 times a condition of up to 50.
        expected = regression(f"{kind}stationary", "stationary")
        for n in range(NUM_PROMPTS):
            one = np.asarray(matrix[:, :, n], np.float64)
            np.testing.assert_allclose(one.sum(axis=1), 1, atol=1e-6)
            np.testing.assert_allclose(stationary_distribution(one), expected[n], atol=3e-5)
            # A prompt that leaves state i does so with the mobility, to whatever state but by chance i itself.
            stays = 1 - parameters[f"{kind}mobility"] * (1 - one.min(axis=0))
            assert np.all(np.diag(one) >= 1 - parameters[f"{kind}mobility"] - 1e-6)
            assert np.all(stays <= 1)


def values_of(found, seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in found.shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_density_is_numpyros_own(name):
    outcomes = all_outcomes()
    model = build(name, "beta-binomial", True)
    found = density(model, outcomes)
    assert set(found.shapes) == set(random_sites(name, "beta-binomial", True))
    potential = jax.jit(lambda values: potential_energy(numpyro_model(model), (outcomes,), {}, values))
    log_prob = jax.jit(found.log_prob)
    for seed in (1, 2):
        values = values_of(found, seed)
        # float32 sums of a few hundred nats.
        np.testing.assert_allclose(log_prob(values, outcomes), -potential(values), rtol=1e-5)
        back = found.unconstrain(found.constrain(values))
        assert set(back) == set(values)
        for site, value in values.items():
            # Last entries of probability vectors are differences from 1: logits lose relative precision.
            np.testing.assert_allclose(back[site], value, atol=2e-3)
    sites = random_sites(name, "beta-binomial", True)
    again = found.constrain(found.unconstrain(sites))
    for site, value in sites.items():
        np.testing.assert_allclose(again[site], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["shared", "hierarchical", "grouped", "online"])
def test_priors_are_those_of_the_docstrings(name):
    outcomes = all_outcomes()
    model, sites = build(name, "exact", False), random_sites(name, "exact", False)
    found = density(model, outcomes)
    values = {site: np.asarray(value, np.float64) for site, value in sites.items()}

    def dirichlet(parameters, rows):
        rows = np.atleast_2d(rows)
        parameters = np.broadcast_to(parameters, rows.shape)
        pairs = zip(parameters, rows / rows.sum(axis=1, keepdims=True), strict=True)
        return sum(stats.dirichlet.logpdf(row, one) for one, row in pairs)

    evidence = float(np.sum(model.log_evidence(sites, outcomes)))
    members, expected = 0.0, 0.0
    if name == "shared":
        expected = dirichlet(1.0, values["initial_probs"]) + dirichlet(1.0, values["transition_matrix"])
    else:
        expected += dirichlet(2.0, values["mean_rows"]) + stats.norm.logpdf(values["strength_units"]).sum()
        concentration = 10 * np.exp(values["strength_units"])[:, None] * values["mean_rows"]
    if name in ("hierarchical", "online"):
        expected += dirichlet(1.0, values["initial_probs"])
    if name == "hierarchical":
        members = sum(dirichlet(concentration, rows) for rows in values["rows"])
    if name == "grouped":
        expected += dirichlet(2.0, values["initial_probs"]) + stats.norm.logpdf(values["initial_strength_units"])
        expected += sum(dirichlet(concentration, rows) for rows in values["group_rows"])
        around = 10 * np.exp(values["initial_strength_units"]) * values["initial_probs"]
        expected += dirichlet(around, values["group_initial"])
    for weight in (1.0, 2.5):
        log_prob = float(found.log_prob_of_sites(sites, outcomes, weight))
        assert log_prob == pytest.approx(expected + weight * (members + evidence), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emission": "normal"}, r"emission: expected one of 'exact', 'binomial', 'beta-binomial', got 'normal'"),
        ({"num_states": 4}, r"num_states: expected one of 2, 3, 5, 7, got 4"),
        ({"num_states": 1, "emission": "binomial"}, r"num_states: expected an integer >= 2 and <= 32, got 1"),
        ({"num_states": 33, "emission": "binomial"}, r"num_states: expected an integer >= 2 and <= 32, got 33"),
        ({"num_states": 2.5, "emission": "binomial"}, r"num_states: expected an integer >= 2 and <= 32, got 2\.5"),
        ({"num_states": 4, "emission": emissions.exact(3)}, r"num_states: expected one of 3, got 4"),
    ],
)
def test_bad_states(options, message):
    with pytest.raises(ValueError, match=message):
        StateSpace(**options)
    for name in MODELS:
        with pytest.raises(ValueError, match=message):
            priors.build(name, all_outcomes(), **options)


def test_bad_names_list_the_known_ones():
    outcomes = all_outcomes()
    names = "'shared', 'hierarchical', 'grouped', 'covariates', 'online'"
    with pytest.raises(ValueError, match=rf"model: expected one of {names}, got 'markov'"):
        priors.build("markov", outcomes)
    for name in MODELS:
        # What the outcomes say is no option.
        known = "emission, is_split, num_states"
        with pytest.raises(ValueError, match=rf"options of model '{name}': expected options among {known}, got states"):
            priors.build(name, outcomes, states=3)
    for name, size in (("grouped", "num_groups"), ("covariates", "num_features")):
        with pytest.raises(ValueError, match=rf"{size}: expected an integer >= 1, got 0"):
            priors.MODELS[name](0)
        with pytest.raises(ValueError, match=rf"expected options among {known}, got {size}"):
            priors.build(name, outcomes, **{size: 2})


def test_groups_and_features_are_needed():
    bare, unknown = priors.prepare(TRACE), priors.prepare(TRACE, groups=np.full(NUM_PROMPTS, -1))
    for outcomes in (bare, unknown):
        with pytest.raises(ValueError, match=r"groups: expected .* got none; the model 'grouped' needs them"):
            priors.build("grouped", outcomes)
    with pytest.raises(ValueError, match=r"features: expected .* got none; the model 'covariates' needs them"):
        priors.build("covariates", bare)


@pytest.mark.parametrize("model", [priors.grouped(2), priors.covariates(2)], ids=["grouped", "covariates"])
def test_densities_need_them_too(model):
    name = {"grouped": "groups", "covariates": "features"}[model.name]
    with pytest.raises(ValueError, match=rf"{name}: expected .* got none"):
        density(model, priors.prepare(TRACE))


def test_densities_need_the_right_number_of_features():
    with pytest.raises(ValueError, match="features: expected 3 for every prompt, got 2"):
        density(priors.covariates(3), all_outcomes())


@pytest.mark.parametrize("emission", ["exact", "beta-binomial"])
@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_python_floats_are_those_of_arrays(name, emission):
    sizes = {"grouped": (NUM_GROUPS,), "covariates": (FEATURES.shape[1],)}.get(name, ())
    model = priors.MODELS[name](*sizes, num_states=NUM_STATES[emission], emission=emission)
    sites = random_sites(name, emission, is_split=False)
    plain = {key: float(value) if value.ndim == 0 else np.asarray(value) for key, value in sites.items()}
    expected, found = model.parameters(sites), model.parameters(plain)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6)
