"""One cell of the arena: a selection method on a mix of prompts, trained over seeds with one compiled program."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dps_jax import _checks, rl, training
from dps_jax.rl._rollout import is_informative
from dps_jax.selectors._option_text import literal
from dps_jax.training import _setup

DATA = Path(__file__).resolve().parent / "data"
WEIGHTS = {name: DATA / f"{name}.safetensors" for name in ("chain_sum", "steps")}
# Sums of one-digit numbers are mastered from the start. Accuracy is measured on the other levels.
_SUMS = tuple((2, digits, 0.25) for digits in (1, 2, 3, 4))
_TEST = tuple((2, digits, 1.0) for digits in (2, 3, 4))

# Fields of TaskConfig by mix. The share of informative groups of a mix is not set; the results have the measured share.
MIXES: dict[str, dict[str, Any]] = {
    # Most references are wrong, and nothing known about a prompt reveals which.
    "lean": {"name": "chain_sum", "levels": _SUMS, "test_levels": _TEST, "broken": 0.8},
    # Most prompts are of levels that the warm-up did not contain, so the level predicts the outcome.
    "lean-by-level": {
        "name": "chain_sum",
        "levels": (*((2, digits, 0.05) for digits in (1, 2, 3, 4)), (3, 3, 0.4), (3, 4, 0.4)),
        "test_levels": _TEST,
        "broken": 0.0,
    },
    "typical": {"name": "chain_sum", "levels": _SUMS, "test_levels": _TEST, "broken": 0.15},
    "rich": {"name": "chain_sum", "levels": _TEST, "test_levels": _TEST, "broken": 0.0},
    "steps-lean": {"name": "steps", "broken": 0.8},
    "steps-typical": {"name": "steps", "broken": 0.3},
}

# Pool of the DPS paper, 8 B. `instructive` has the default pool of training runs.
_PAPER_POOL = {"pool_factor": 8, "pool_share": 0.0}
# Fields of TrainConfig that a method changes: method -> part of the config -> values.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "uniform": {"selector": {"method": "uniform"}},
    "history": {"selector": {"method": "history"}},
    "ds": {"selector": {"method": "uniform"}, "rollout": {"collection": "dynamic"}},
    # As `ds`, but discarded rollouts are not counted: an upper bound for `ds`.
    "ds-free": {"selector": {"method": "uniform"}, "rollout": {"collection": "dynamic"}},
    "mopps": {"selector": {"method": "mopps", **_PAPER_POOL}},
    "queue": {"selector": {"method": "queue", **_PAPER_POOL}},
    "arcsine": {"selector": {"method": "arcsine", **_PAPER_POOL}},
    **{
        name: {"selector": {"method": name, **_PAPER_POOL}}
        for name in ("logit_kalman", "ema_variance", "last_state", "shared_net")
    },
    "dps": {"selector": {"method": "dps", **_PAPER_POOL}},
    # The prior is in experiments/data/priors/; fit_prior.py fitted it to a run with uniform selection on the same mix.
    "dps-fitted": {"selector": {"method": "dps", **_PAPER_POOL}},
    "binomial_hmm": {"selector": {"method": "binomial_hmm", **_PAPER_POOL}},
    "instructive": {"selector": {"method": "instructive"}},
}


class Bound(NamedTuple):
    """Selection by true success rates, estimated from 24 extra completions of every candidate, which are not counted.

    Attributes:
      worth: success rates of the candidates [M] -> their worth, [M].
      temperature: temperature of the random draw, as in `selectors.Acquisition`; 0 takes the best.
    """

    worth: Callable[[jax.Array], jax.Array]
    temperature: float


def _informative(rates: jax.Array) -> jax.Array:
    return 1 - rates**8 - (1 - rates) ** 8


BOUNDS: dict[str, Bound] = {
    "true-greedy": Bound(_informative, 0.0),
    "true-proportional": Bound(_informative, 1.0),
    "true-instructive": Bound(lambda rates: _informative(rates) * (1 - rates), 0.4),
    "true-informative": Bound(lambda rates: jnp.where(_informative(rates) > 0.5, 1.0, 0.0), 1.0),
}
_BOUND_SAMPLES = 24
# Pool of the bounds, in batches. If useful prompts are rare, a method with a larger pool may be ahead of a bound.
_BOUND_POOL = 8
# Seed of all evaluations, the same for all cells and seeds.
_EVALUATION_SEED = 1000


def base(method: str) -> str:
    """Returns the name of a method without its options."""
    return method.partition(":")[0]


def changes_of(method: str) -> dict[str, dict[str, Any]]:
    """Returns the config fields that a method changes; options of selector, learner or rollout may follow its name.

    Raises:
      ValueError: for an unknown method or option, an option that is not NAME=VALUE, or a bound with options.
    """
    name, _, text = method.partition(":")
    _checks.check_choice("methods", name, (*METHODS, *BOUNDS))
    if text and name in BOUNDS:
        raise ValueError(f"methods: expected no options of the bound {name!r}, got {text!r}")
    changes = {part: dict(values) for part, values in METHODS.get(name, METHODS["uniform"]).items()}
    for option in filter(None, text.split(",")):
        key, has_value, value = option.partition("=")
        if not has_value:
            raise ValueError(f"methods: expected options NAME=VALUE after the colon, got {option!r} in {method!r}")
        part = next((part for part, names in _FIELDS.items() if key in names), None)
        if part is None:
            known = ", ".join(name for names in _FIELDS.values() for name in names)
            raise ValueError(f"methods: expected one of the options {known}, got {key!r} in {method!r}")
        changes.setdefault(part, {})[key] = literal(value)
    return changes


_FIELDS = {
    part: tuple(field.name for field in dataclasses.fields(config) if field.name != "options")
    for part, config in (
        ("selector", training.SelectorConfig),
        ("learner", training.LearnerConfig),
        ("rollout", training.RolloutConfig),
    )
}


class Cell(NamedTuple):
    """A method on a mix of prompts, to be run with several seeds.

    Attributes:
      mix: name of a mix in `MIXES`.
      num_prompts: number of training prompts, N.
      method: name of a method in `METHODS` or `BOUNDS`, with options as in `changes_of`.
      learning_rate: learning rate of the policy.
      num_rounds: number of rounds, T.
      eval_every: number of rounds between two evaluations.
    """

    mix: str
    num_prompts: int
    method: str
    learning_rate: float = 3e-4
    num_rounds: int = 150
    eval_every: int = 10

    def name(self) -> str:
        """Returns a file name that depends on all settings of the cell, but not on the seed or the code."""
        config = dataclasses.asdict(run_config(self, 0))
        files = [WEIGHTS[MIXES[self.mix]["name"]]]
        if (prior := Path(config["selector"]["prior"] or "")).is_file():
            files.append(prior)
            config["selector"]["prior"] = prior.name
        # Records from before this field existed keep their names.
        if not config["selector"]["options"]:
            del config["selector"]["options"]
        settings = [self, config, *map(_checksum, files)]
        if base(self.method) in BOUNDS:
            settings += [_BOUND_SAMPLES, _BOUND_POOL, BOUNDS[self.method].temperature]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_as_text).encode()).hexdigest()[:10]
        words = self.method.replace(":", "-").replace("/", "-")
        return f"{self.mix}-{self.num_prompts}-{words}-{self.learning_rate:g}-{digest}"


@functools.cache
def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _as_text(value: Any) -> str:
    """Returns the file name of a path, without its folders, or the `str` of any other value."""
    return value.name if isinstance(value, Path) else str(value)


def run_config(cell: Cell, seed: int) -> training.TrainConfig:
    """Returns the config of a cell and a seed; a bound has uniform selection here, which `_selection` replaces."""
    changes = changes_of(cell.method)
    if base(cell.method) == "dps-fitted":
        changes["selector"]["prior"] = str(DATA / "priors" / f"{cell.mix}.json")
    mix = MIXES[cell.mix]
    learner: dict[str, Any] = {"learning_rate": cell.learning_rate} | changes.get("learner", {})
    return training.TrainConfig(
        seed=seed,
        num_rounds=cell.num_rounds,
        eval_every=cell.eval_every,
        eval_samples=2,
        task=training.TaskConfig(num_train=cell.num_prompts, **mix),
        model=training.ModelConfig(weights=WEIGHTS[mix["name"]]),
        selector=training.SelectorConfig(**changes.get("selector", {})),
        rollout=training.RolloutConfig(**changes.get("rollout", {})),
        learner=training.LearnerConfig(**learner),
    )


def _select_by_truth(
    state: Any, problems: Any, *, bound: Bound, sample_fn: Any, score_fn: Any, num_prompts: int, batch_size: int
) -> rl.Selection:
    """Returns the prompts that a bound picks from a random pool."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.round_index), 1)
    key_pool, key_sample, key_draw = jax.random.split(key, 3)
    pool_size = min(_BOUND_POOL * batch_size, num_prompts)
    pool = jax.random.choice(key_pool, num_prompts, (pool_size,), replace=False).astype(jnp.int32)
    rates = rl.rollout(sample_fn, score_fn, state.params, problems, pool, key_sample).is_correct.mean(axis=1)
    scores = jnp.log(jnp.maximum(bound.worth(rates), 1e-9))
    noise = jax.random.gumbel(key_draw, (pool_size,))
    keys = scores / bound.temperature + noise if bound.temperature else scores + 1e-6 * noise
    ids = pool[jax.lax.top_k(keys, batch_size)[1]]
    return rl.Selection(ids=ids, scores=jnp.zeros(batch_size))


class _Rounds(NamedTuple):
    """Records of several rounds; every array has a leading axis of rounds."""

    ids: jax.Array
    successes: jax.Array
    counts: jax.Array
    num_rollouts: jax.Array
    num_tokens: jax.Array
    effective_sample_ratio: jax.Array
    num_informative: jax.Array
    brier: jax.Array
    predicted_informative: jax.Array


def _rounds(state: Any, problems: Any, *, step: Any, select: Any, num_rounds: int) -> tuple[Any, _Rounds]:
    """Returns the state after some rounds, and the records of these rounds."""

    def one(state: Any, _: Any) -> tuple[Any, _Rounds]:
        collection: rl.Collection = step.collect(state, problems, select(state, problems))
        state, _ = step.update(state, collection)
        state, judgement = step.observe(state, collection)
        return state, _Rounds(
            ids=collection.ids,
            successes=collection.successes,
            counts=collection.counts,
            num_rollouts=collection.num_rollouts,
            num_tokens=collection.num_tokens,
            effective_sample_ratio=collection.effective_sample_ratio,
            num_informative=jnp.sum(is_informative(collection.batch) & collection.batch.is_used),
            brier=judgement.brier,
            predicted_informative=judgement.predicted_informative,
        )

    return jax.lax.scan(one, state, None, length=num_rounds)


def _gradient_cosine(state: Any, problems: Any, *, step: Any, select: Any) -> jax.Array:
    """Returns the cosine of the gradients of two independent rounds from one state; 0 if a gradient is zero."""

    def gradient(number: int) -> Any:
        other = state._replace(key=jax.random.fold_in(state.key, 2**30 + number))
        return step.gradient(other, step.collect(other, problems, select(other, problems)))

    one, two = gradient(0), gradient(1)
    norms = optax.tree.norm(one) * optax.tree.norm(two)
    return jnp.where(norms > 0, optax.tree.vdot(one, two) / jnp.maximum(norms, 1e-12), 0.0)


def _selection(cell: Cell, config: training.TrainConfig, parts: _setup.Parts) -> Callable[..., rl.Selection | None]:
    """Returns a function (state, problems) -> `Selection`; with dynamic collection, it returns None."""
    if base(cell.method) not in BOUNDS:
        return lambda state, problems: parts.round.select(state)
    graphdef, _ = nnx.split(_setup.load_policy(config, parts.task))
    return functools.partial(
        _select_by_truth,
        bound=BOUNDS[cell.method],
        sample_fn=_setup.make_sampler(graphdef, parts.task, group_size=_BOUND_SAMPLES),
        score_fn=parts.score_fn,
        num_prompts=cell.num_prompts,
        batch_size=config.rollout.batch_size,
    )


class _Stretch(NamedTuple):
    """The rounds between two evaluations.

    Attributes:
      rounds: records of the rounds.
      num_rollouts: number of rollouts that count.
      gradient_cosine: `_gradient_cosine` before the first round; None for bounds, whose selection is slow.
      seconds: median seconds per rollout, without evaluations.
      accuracy: held-out accuracy after the last round.
    """

    rounds: _Rounds
    num_rollouts: int
    gradient_cosine: float | None
    seconds: float
    accuracy: float


def _record(
    cell: Cell, seed: int, first_accuracy: float, stretches: list[_Stretch], groups: np.ndarray
) -> dict[str, Any]:
    """Returns the record of a run as JSON values; lists are over evaluations or the stretches between them."""
    means = lambda name: [round(float(np.mean(getattr(stretch.rounds, name))), 5) for stretch in stretches]
    ids = np.concatenate([stretch.rounds.ids.ravel() for stretch in stretches])
    num_levels = int(groups.max()) + 1
    of_stretch = lambda stretch: stretch.rounds.ids[stretch.rounds.ids >= 0]
    levels = [np.bincount(groups[of_stretch(stretch)], minlength=num_levels).tolist() for stretch in stretches]
    rates = [np.sum(stretch.rounds.successes) / max(np.sum(stretch.rounds.counts), 1) for stretch in stretches]
    cosines = [stretch.gradient_cosine for stretch in stretches]
    return {
        **cell._asdict(),
        "seed": seed,
        "accuracy": [first_accuracy, *(stretch.accuracy for stretch in stretches)],
        "rollouts": np.cumsum([stretch.num_rollouts for stretch in stretches]).tolist(),
        "tokens": np.cumsum([int(np.sum(stretch.rounds.num_tokens)) for stretch in stretches]).tolist(),
        "seconds_per_rollout": float(np.median([stretch.seconds for stretch in stretches])),
        "gradient_cosine": None if None in cosines else [round(cosine, 5) for cosine in cosines if cosine is not None],
        "effective_sample_ratio": means("effective_sample_ratio"),
        "num_informative": means("num_informative"),
        "predicted_informative": means("predicted_informative"),
        "brier": means("brier"),
        "success_rate_of_picks": [round(float(rate), 5) for rate in rates],
        "distinct_prompts": int(np.unique(ids[ids >= 0]).size),
        "picks_by_level": levels,
    }


def run(cell: Cell, seeds: Sequence[int], done: Callable[[dict[str, Any]], None]) -> None:
    """Runs a cell with every seed, and passes the record of each run to `done`.

    All that differs between seeds (problems, prompt groups, features) is in the state or an argument, so one compiled
    program serves all seeds. All evaluations use the same keys. All runs have the same number of rollouts, up to those
    of the last round. `ds` therefore has fewer rounds; `ds-free` does not, since discarded rollouts are not counted.
    """
    advance, cosine, evaluate = None, None, _setup.build(run_config(cell, _EVALUATION_SEED)).evaluate
    is_dynamic, is_free = base(cell.method) == "ds", base(cell.method) == "ds-free"
    length = 1 if is_dynamic else cell.eval_every
    for seed in seeds:
        config = run_config(cell, seed)
        parts = _setup.build(config)
        if advance is None:
            how = {"step": parts.round, "select": _selection(cell, config, parts)}
            advance = jax.jit(functools.partial(_rounds, **how, num_rounds=length), donate_argnums=0)
            if base(cell.method) not in BOUNDS:
                cosine = jax.jit(functools.partial(_gradient_cosine, **how))
        of_round = config.rollout.batch_size * config.rollout.group_size
        state = jax.jit(parts.round.init)(parts.params, jax.random.key(seed))
        first_accuracy = evaluate(state.params, 0)["test_accuracy"]
        stretches: list[_Stretch] = []
        num_rollouts = 0
        for mark in range(cell.eval_every, cell.num_rounds + 1, cell.eval_every):
            if num_rollouts >= mark * of_round:
                continue
            chunks, seconds = [], []
            before = num_rollouts
            found = None if cosine is None else float(cosine(state, parts.graded))
            while num_rollouts < mark * of_round:
                started = time.perf_counter()
                state, chunk = advance(state, parts.graded)
                chunks.append(jax.device_get(chunk))
                spent = length * of_round if is_free else int(np.sum(chunks[-1].num_rollouts))
                seconds.append((time.perf_counter() - started) / spent)
                num_rollouts += spent
            accuracy = evaluate(state.params, mark)["test_accuracy"]
            rounds = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
            stretches.append(_Stretch(rounds, num_rollouts - before, found, float(np.median(seconds)), accuracy))
        done(_record(cell, seed, first_accuracy, stretches, parts.problems.groups))
