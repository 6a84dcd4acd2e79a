"""Measures the likelihood for fitting priors and its gradient, and the same with dynamax and NumPyro, in one run.

All implementations receive the same trace. Before they are timed, their values and gradients are compared. The row
`memory reference` is x + 1 in place over as many float32 numbers as the trace has log-likelihoods.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _bench
import _bench_report
import _machine
import bench_filter
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.infer.util import initialize_model
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dps_jax import _checks, _cli, _json, priors
from dps_jax.hmm import emissions, online, smoothing
from dps_jax.priors._density import density
from dps_jax.priors._parts import StateSpace, sample
from dps_jax.traces import _simulate

_GROUP_SIZE = 8
_NUM_GROUPS = 6
_NUM_FEATURES = 4
# Largest relative difference that is allowed between the values or gradients of contestants.
_TOLERANCE = 1e-3
# In place of probability 0, at which NumPyro's enumeration has no gradient; it is too small to change the result.
_ALMOST_ZERO = 1e-12
METHOD_NOTES = {
    "questions": "value and gradient of the log probability of the whole trace: with one transition matrix; with a "
    "second matrix for moves out of observed rounds; with a beta-binomial emission; of the filter that learns each "
    "prompt's matrix online; and of the prior models in unconstrained parameters, as NUTS evaluates them.",
    "dynamax": "value_and_grad of vmap of hmm_filter; the log likelihoods are arrays [N, T, K], made beforehand, with "
    "zeros for rounds without a visit; for the beta-binomial emission, our code computes them from the parameters.",
    "numpyro, enumeration": "contrib.control_flow.scan over rounds, prompts in a plate, states enumerated in parallel.",
    "vmap": "one prompt's filter step under vmap and scan, differentiated by JAX.",
    "repeats": "in every repeat, the contestants run in a new random order, after one or two warm-up runs; slow ones "
    "are left out of some repeats, but have at least three runs.",
    "ratio_to_ours, ratio_to_floor": "median over repeats of own time / time of ours or of the floor in that repeat.",
    "extrapolated": "measured with the first enumeration_limit prompts; the time is assumed proportional to N.",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and repeats of the measurements."""

    num_prompts: tuple[int, ...] = (10_000, 300)
    """Number of prompts, N, of each trace that is measured; one or more numbers."""
    num_rounds: tuple[int, ...] = (100, 30)
    """Number of rounds, T, of each trace; one for each entry of --num-prompts."""
    observed_share: float = 0.3
    """Share of the prompts that are observed in a round."""
    num_states: int = 3
    """Number of hidden states, K: 2, 3, 5 or 7."""
    repeats: int = 15
    """Number of timed runs of every implementation for every trace."""
    max_seconds: float = 4.0
    """Time limit in seconds for one implementation and trace; slow ones get fewer repeats, but at least three."""
    enumeration_limit: int = 10_000
    """Largest number of prompts at which enumeration by NumPyro is measured; its times for more prompts are
    extrapolated."""
    out_dir: Path = Path("runs/bench_priors")
    """Folder for results.json and table.md."""
    quick: bool = False
    """Measure one tiny trace, to check that everything works."""

    def __post_init__(self):
        if not self.num_prompts or len(self.num_prompts) != len(self.num_rounds):
            sizes = f"{len(self.num_prompts)} num_prompts and {len(self.num_rounds)} num_rounds"
            raise ValueError(f"num_prompts: expected one or more numbers, and as many as num_rounds, got {sizes}")
        for name in ("num_prompts", "num_rounds"):
            for value in getattr(self, name):
                _checks.check_int(name, value, at_least=2)
        for name in ("repeats", "enumeration_limit"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        _checks.check_choice("num_states", self.num_states, emissions.EXACT_NUM_STATES)
        if not 0 < self.observed_share <= 1:
            raise ValueError(f"observed_share: expected a share in (0, 1], got {self.observed_share}")


class Given(NamedTuple):
    """One trace, in the forms that the contestants need.

    Attributes:
      outcomes: outcomes in the form that `priors.fit` accepts.
      log_likelihood: log likelihood of every outcome in each state, [T, K, N]; each outcome has one possible state.
      log_likelihood_by_prompt: the same numbers, [N, T, K].
      states: state of every outcome, int32 [T, N].
      is_observed: whether the prompt was visited in the round, bool [T, N].
    """

    outcomes: priors.Outcomes
    log_likelihood: jax.Array
    log_likelihood_by_prompt: jax.Array
    states: jax.Array
    is_observed: jax.Array


class Contestant(NamedTuple):
    """An implementation of one log probability.

    Attributes:
      question: name of the log probability; the first contestant of a question is ours.
      name: name of the implementation.
      log_prob: (parameters, Given) -> log probability of the trace in nats, a scalar.
      parameters: parameters by name; the gradient is with respect to these.
      given: the trace, or the part of it that is used.
    """

    question: str
    name: str
    log_prob: Callable[[dict[str, jax.Array], Given], jax.Array]
    parameters: dict[str, jax.Array]
    given: Any

    @property
    def label(self) -> str:
        """Name of the contestant in tables."""
        return f"{self.question}: {self.name}"


def lay_out(outcomes: priors.Outcomes, num_states: int) -> Given:
    """Returns a trace in the forms that the contestants need."""
    logs = StateSpace(num_states).log_likelihood({}, outcomes)
    states = emissions.observed_states(num_states, outcomes.successes, outcomes.counts)[outcomes.codes]
    return Given(outcomes, logs, jnp.transpose(logs, (2, 0, 1)), states, outcomes.codes > 0)


def make_distributions(num_states: int) -> dict[str, Any]:
    """Returns an initial distribution and two asymmetric transition matrices, float64."""
    rng = np.random.default_rng(3)
    rows = lambda: 0.3 * rng.dirichlet(np.ones(num_states), num_states) + 0.7 * np.eye(num_states)
    initial_probs = rng.dirichlet(np.full(num_states, 5.0))
    return {"initial_probs": initial_probs, "transition_matrix": rows(), "trained_matrix": rows()}


def make_outcomes(num_prompts: int, num_rounds: int, config: Config) -> priors.Outcomes:
    """Returns the outcomes of a simulated trace, with random groups and features."""
    rng = np.random.default_rng(0)
    batch_size = max(1, round(config.observed_share * num_prompts))
    emission = emissions.exact(config.num_states)
    sizes = {"num_rounds": num_rounds, "num_prompts": num_prompts, "batch_size": batch_size, "group_size": _GROUP_SIZE}
    simulated = _simulate.simulate_hmm(rng, emission=emission, **make_distributions(config.num_states), **sizes)
    features = rng.standard_normal((num_prompts, _NUM_FEATURES))
    return priors.prepare(simulated.trace, groups=rng.integers(0, _NUM_GROUPS, num_prompts), features=features)


def one_prompt_online(parameters: dict[str, jax.Array], logs: jax.Array, is_observed: jax.Array) -> jax.Array:
    """Returns the log probability of one prompt's trace under the filter that learns its matrix; `logs` are [T, K]."""

    def step(carry, inputs):
        belief, learned, is_first = carry
        log, is_seen = inputs
        counts = parameters["concentration"] + learned
        matrix = counts / counts.sum(axis=1, keepdims=True)
        likelihood = jnp.exp(log)
        joint = belief[:, None] * matrix * likelihood
        predicted = jnp.where(is_first, belief, belief @ matrix)
        evidence = predicted @ likelihood
        belief = jnp.where(is_seen, predicted * likelihood / evidence, predicted)
        learned = parameters["decay"] * learned + jnp.where(is_seen, joint / joint.sum(), 0)
        return (belief, learned, jnp.zeros((), bool)), jnp.where(is_seen, jnp.log(evidence), 0)

    start = (parameters["initial_probs"], jnp.zeros_like(parameters["concentration"]), jnp.ones((), bool))
    return lax.scan(step, start, (logs, is_observed))[1].sum()


def enumerated_chain(initial_probs: jax.Array, transition_matrix: jax.Array, given: Given) -> None:
    """Declares the hidden chains of all prompts and their outcomes as NumPyro sample sites."""
    num_states, num_prompts = initial_probs.size, given.states.shape[1]
    # All chains start from an extra state, whose row is the initial distribution.
    rows = jnp.concatenate([transition_matrix, initial_probs[None]])
    outcome_probs = jnp.maximum(jnp.eye(num_states), _ALMOST_ZERO)

    def move(state, inputs):
        seen, is_observed = inputs
        with numpyro.plate("prompts", num_prompts):
            infer = {"enumerate": "parallel"}
            state = numpyro.sample("state", dist.CategoricalProbs(rows[state]), infer=infer)
            with numpyro.handlers.mask(mask=is_observed):
                numpyro.sample("seen", dist.CategoricalProbs(outcome_probs[state]), obs=seen)
        return state, None

    scan = importlib.import_module("numpyro.contrib.control_flow").scan
    scan(move, jnp.full(num_prompts, num_states), (given.states, given.is_observed))


def enumerated_shared(num_states: int, given: Given) -> None:
    """Declares the model `shared` in plain NumPyro."""
    initial_probs = sample("initial_probs", dist.Dirichlet(jnp.ones(num_states)))
    rows = dist.Dirichlet(jnp.ones((num_states, num_states))).to_event(1)
    enumerated_chain(initial_probs, sample("transition_matrix", rows), given)


def import_peer(name: str, package: str, num_prompts: int, skipped: bench_filter.Skipped) -> Any:
    """Returns a module; if its package is not installed, records that as skipped and returns None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the dependencies of the module
            return importlib.import_module(name)
    except ImportError as error:
        skipped.add(package, num_prompts, f"{error}; needs pip install {package}")
        return None


def make_ours(given: Given, config: Config) -> list[Contestant]:
    """Returns the contestants of this library: likelihoods under given distributions, and the prior models."""
    num_states, key = config.num_states, jax.random.key(0)
    distributions = {name: jnp.asarray(value, jnp.float32) for name, value in make_distributions(num_states).items()}
    space = StateSpace(num_states, "beta-binomial")
    with numpyro.handlers.trace() as sites, numpyro.handlers.seed(rng_seed=0):
        space.sample_emission()
    learned = {name: site["value"] for name, site in sites.items()}
    one = {name: distributions[name] for name in ("initial_probs", "transition_matrix")}
    prior = {
        "initial_probs": distributions["initial_probs"],
        "concentration": 5 * distributions["transition_matrix"] + 0.1,
    }

    def one_matrix(parameters, given):
        initial_probs, transition_matrix = parameters["initial_probs"], parameters["transition_matrix"]
        return smoothing.log_evidence(initial_probs, transition_matrix, given.log_likelihood).sum()

    def two_matrices(parameters, given):
        initial_probs, transition_matrix, trained_matrix = (parameters[name] for name in distributions)
        kinds = {"trained_matrix": trained_matrix, "is_trained": given.is_observed}
        return smoothing.log_evidence(initial_probs, transition_matrix, given.log_likelihood, **kinds).sum()

    def beta_binomial(parameters, given):
        logs = space.log_likelihood(parameters, given.outcomes)
        return smoothing.log_evidence(parameters["initial_probs"], parameters["transition_matrix"], logs).sum()

    def online_filter(parameters, given):
        initial_probs, concentration, decay = (parameters[name] for name in ("initial_probs", "concentration", "decay"))
        logs = given.log_likelihood
        return online.log_predictive_probs(initial_probs, concentration, decay, logs, given.is_observed).sum()

    made = [
        Contestant("one matrix", "dps_jax", one_matrix, one, given),
        Contestant("two matrices", "dps_jax", two_matrices, distributions, given),
        Contestant("beta-binomial", "dps_jax", beta_binomial, one | learned, given),
        Contestant("online filter", "dps_jax", online_filter, prior | {"decay": jnp.float32(0.8)}, given),
    ]
    for name in priors.MODELS:
        of_model = density(priors.build(name, given.outcomes, num_states=num_states), given.outcomes)
        keys = jax.random.split(key, len(of_model.shapes))
        pairs = zip(of_model.shapes.items(), keys, strict=True)
        values = {site: 0.3 * jax.random.normal(site_key, shape) for (site, shape), site_key in pairs}
        log_prob = lambda parameters, given, of_model=of_model: of_model.log_prob(parameters, given.outcomes)
        made.append(Contestant(f"model {name}", "dps_jax", log_prob, values, given))
    return made


def make_rivals(ours: Sequence[Contestant], config: Config, skipped: bench_filter.Skipped) -> list[Contestant]:
    """Returns the other implementations, as far as their packages are installed."""
    by_question = {contestant.question: contestant for contestant in ours}
    num_states, given = config.num_states, ours[0].given
    num_prompts = given.outcomes.num_prompts
    space = StateSpace(num_states, "beta-binomial")

    def rival(question: str, name: str, log_prob: Callable[..., jax.Array], given: Given = given) -> Contestant:
        return by_question[question]._replace(name=name, log_prob=log_prob, given=given)

    def vmap_online(parameters, given):
        one = functools.partial(one_prompt_online, parameters)
        return jax.vmap(one, in_axes=(-1, -1))(given.log_likelihood, given.is_observed).sum()

    made = [rival("online filter", "vmap", vmap_online)]
    dynamax = import_peer("dynamax.hidden_markov_model.inference", "dynamax", num_prompts, skipped)
    if dynamax is not None:
        evidence = lambda *args, axis=None: jax.vmap(dynamax.hmm_filter, in_axes=(None, axis, 0))(
            *args
        ).marginal_loglik.sum()

        def one_matrix(parameters, given):
            initial_probs, transition_matrix = parameters["initial_probs"], parameters["transition_matrix"]
            return evidence(initial_probs, transition_matrix, given.log_likelihood_by_prompt)

        def two_matrices(parameters, given):
            is_trained = given.is_observed[:-1].T[..., None, None]
            matrices = jnp.where(is_trained, parameters["trained_matrix"], parameters["transition_matrix"])
            return evidence(parameters["initial_probs"], matrices, given.log_likelihood_by_prompt, axis=0)

        def beta_binomial(parameters, given):
            logs = jnp.transpose(space.log_likelihood(parameters, given.outcomes), (2, 0, 1))
            return evidence(parameters["initial_probs"], parameters["transition_matrix"], logs)

        made.append(rival("one matrix", "dynamax", one_matrix))
        made.append(rival("two matrices", "dynamax", two_matrices))
        made.append(rival("beta-binomial", "dynamax", beta_binomial))
    funsor = import_peer("numpyro.contrib.funsor", "funsor", num_prompts, skipped)
    if funsor is not None:
        part = given
        if num_prompts > config.enumeration_limit:
            part = lay_out(given.outcomes.take(jnp.arange(config.enumeration_limit)), num_states)

        def enumerated(parameters, given):
            model = funsor.enum(funsor.config_enumerate(enumerated_chain), first_available_dim=-2)
            args = (parameters["initial_probs"], parameters["transition_matrix"], given)
            return funsor.log_density(model, args, {}, {})[0]

        model = functools.partial(enumerated_shared, num_states)
        info = initialize_model(jax.random.key(0), model, model_args=(part,), dynamic_args=True, validate_grad=False)
        shared = lambda parameters, given: -info.potential_fn(given)(parameters)
        made.append(rival("one matrix", "numpyro, enumeration", enumerated, part))
        made.append(rival("model shared", "numpyro, enumeration", shared, part))
    return made


def largest_difference(found: Any, expected: Any) -> float:
    """Returns the largest difference between two trees, relative to the largest entry of each array."""
    gaps = jax.tree.map(lambda x, y: jnp.abs(x - y).max() / jnp.abs(y).max(), found, expected)
    return float(np.max(jax.tree.leaves(gaps)))


def check_agreement(contestants: Sequence[Contestant], programs: dict[str, _bench.Program]) -> dict[str, float]:
    """Returns the largest relative difference of each rival's value and gradient from ours.

    Raises:
      RuntimeError: if a difference exceeds 1e-3.
    """
    ours = {entry.question: entry for entry in contestants if entry.name == "dps_jax"}
    differences = {}
    for rival in contestants:
        if rival.name == "dps_jax":
            continue
        our = ours[rival.question]
        run = programs[our.label].call if rival.given is our.given else jax.value_and_grad(our.log_prob)
        args = (rival.parameters, rival.given)
        gap = largest_difference(programs[rival.label].call(*args), run(*args))
        if not gap <= _TOLERANCE:
            raise RuntimeError(f"{rival.label}: value or gradient differs from ours by {gap:.2g}")
        differences[rival.label] = gap
    return differences


def job_of(contestant: Contestant, program: _bench.Program) -> _bench.Job:
    """Returns the job that times a contestant."""

    def run(given):
        jax.block_until_ready(program.call(contestant.parameters, contestant.given))

    facts = {contestant.label: {"compile_s": program.compile_s}}
    return _bench.Job(facts, program.memory_bytes, lambda: {contestant.label: run})


def measure(num_prompts: int, num_rounds: int, config: Config, skipped: bench_filter.Skipped) -> dict[str, Any]:
    """Returns the rows of all contestants for one trace, measured in turns, and the differences between them."""
    say = lambda words: skipped.console.print(f"{num_prompts:,} prompts x {num_rounds} rounds: {words}")
    say("preparing the trace")
    given = lay_out(make_outcomes(num_prompts, num_rounds, config), config.num_states)
    ours = make_ours(given, config)
    contestants = [*ours, *make_rivals(ours, config, skipped)]
    contestants.sort(key=lambda entry: [one.question for one in ours].index(entry.question))
    say("compiling")
    programs = {
        entry.label: _bench.compile_for(jax.value_and_grad(entry.log_prob), entry.parameters, entry.given)
        for entry in contestants
    }
    say("checking that values and gradients agree")
    agreement = check_agreement(contestants, programs)
    say("timing")
    jobs = [_bench.floor_job(-(-given.log_likelihood.size // 12))]
    jobs += [job_of(entry, programs[entry.label]) for entry in contestants]
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("timing", total=config.repeats)
        times = _bench.time_in_turns(jobs, config.repeats, config.max_seconds, 1, lambda: progress.advance(task))
    facts = {name: known | {"memory_bytes": job.memory_bytes} for job in jobs for name, known in job.facts.items()}
    trace = {"num_prompts": num_prompts, "num_rounds": num_rounds}
    rows = [trace | {"question": "floor", "contestant": "floor"} | summarise("floor", "floor", 1.0, times, facts)]
    for entry in contestants:
        ours_label = f"{entry.question}: dps_jax"
        measured = entry.given.outcomes.num_prompts
        scale = given.outcomes.num_prompts / measured
        row = trace | {"question": entry.question, "contestant": entry.name}
        row |= summarise(entry.label, ours_label, scale, times, facts)
        rows.append(row | ({"extrapolated_from": measured} if scale != 1 else {}))
    return {"rows": rows, "agreement": {f"{num_prompts} x {num_rounds}": agreement}}


def summarise(
    label: str, ours: str, scale: float, times: dict[str, dict[int, float]], facts: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Returns the row of one contestant; its times are multiplied by `scale`."""
    seconds = {repeat: scale * value for repeat, value in times[label].items()}
    first, median, third = np.quantile(list(seconds.values()), [0.25, 0.5, 0.75]).tolist()

    def ratio(other: str) -> float:
        paired = [value / times[other][repeat] for repeat, value in seconds.items() if repeat in times[other]]
        return float(np.median(paired)) if paired else median / float(np.median(list(times[other].values())))

    found = {"median_s": median, "min_s": min(seconds.values()), "quartiles_s": [first, third]}
    found |= {"num_repeats": len(seconds), "is_extrapolated": scale != 1}
    return found | {"ratio_to_ours": ratio(ours), "ratio_to_floor": ratio("floor"), **facts[label]}


def to_lines(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the table, which has a column for every trace."""
    rows = results["measurements"]
    traces = list(dict.fromkeys((row["num_prompts"], row["num_rounds"]) for row in rows))
    by_cell = {(row["question"], row["contestant"], row["num_prompts"], row["num_rounds"]): row for row in rows}
    body = []
    for question, name in dict.fromkeys((row["question"], row["contestant"]) for row in rows):
        found = [by_cell.get((question, name, *trace)) for trace in traces]
        cells = []
        for row in found:
            text = _bench_report.in_words(row["median_s"]) if row else "-"
            if row and name not in ("dps_jax", "floor"):
                text += f" ({row['ratio_to_ours']:.3g}x)"
            cells.append(f"*{text}, extrapolated*" if row and row["is_extrapolated"] else text)
        largest = max((row for row in found if row), key=lambda row: row["num_prompts"] * row["num_rounds"])
        cells.append("" if name == "floor" else f"{largest['ratio_to_floor']:.3g}")
        cells += [f"{largest['memory_bytes'] / 2**20:,.0f} MiB", _bench_report.in_words(largest["compile_s"])]
        is_reference = name == _bench_report.REFERENCE
        body.append([_bench_report.REFERENCE_NAME if is_reference else f"{question}: {name}", *cells])
    head = ["likelihood and gradient", *(f"{prompts:,} x {rounds}" for prompts, rounds in traces)]
    return [*head, "x reference", "memory", "compile"], body


def to_markdown(results: dict[str, Any]) -> str:
    """Returns the table, followed by a note on the conditions."""
    head, body = to_lines(results)
    machine, config = results["machine"], results["config"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in body]
    gaps = [gap for agreement in results["agreement"].values() for gap in agreement.values()]
    agreed = f"values and gradients agree within {max(gaps):.1e}; " if gaps else ""
    lines += [
        "",
        f"Median times of prompts x rounds, {config['observed_share']:.0%} of them observed, K = "
        f"{config['num_states']}; in brackets the ratio to dps_jax, and in the column x reference the ratio to the "
        "memory reference, each the median over repeats of the ratio in the same repeat; x reference, memory (the peak "
        f"of a run) and compile (the compilation time): for the largest trace; {agreed}{machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB; JAX {machine['jax']} on {machine['backend']} "
        f"({machine['device']}); {machine['date']}.",
    ]
    return "\n".join(lines) + "\n"


def main(config: Config) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them.

    Raises:
      RuntimeError: if the values or gradients of the contestants differ.
    """
    if config.quick:
        config = dataclasses.replace(config, num_prompts=(60,), num_rounds=(8,), repeats=3, max_seconds=0.2)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    skipped = bench_filter.Skipped(console)
    machine = _machine.describe_machine()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    sizes = zip(config.num_prompts, config.num_rounds, strict=True)
    measured = [measure(num_prompts, num_rounds, config, skipped) for num_prompts, num_rounds in sizes]
    results = {
        "machine": machine,
        "config": {name: value for name, value in dataclasses.asdict(config).items() if name != "out_dir"},
        "how": METHOD_NOTES,
        "agreement": {trace: gaps for one in measured for trace, gaps in one["agreement"].items()},
        "measurements": [row for one in measured for row in one["rows"]],
        "skipped": skipped.entries,
    }
    head, body = to_lines(results)
    table = Table(*head)
    for cells in body:
        table.add_row(*cells)
    console.print(table)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _json.write(config.out_dir / "results.json", results, indent=2)
    (config.out_dir / "table.md").write_text(to_markdown(results), encoding="utf-8")
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
