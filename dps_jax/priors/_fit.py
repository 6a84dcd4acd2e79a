"""Fits a model to a trace by NUTS, SVI or MAP."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS
from rich.console import Console
from rich.progress import Progress, track

from dps_jax import _checks
from dps_jax.priors import _mode, _strength, _variational
from dps_jax.priors._density import Density, density
from dps_jax.priors._outcomes import Outcomes
from dps_jax.priors._parts import PriorModel
from dps_jax.priors._result import FitResult, Judgement, certain_starts, judge_draws, judge_losses, judge_modes

METHODS = ("nuts", "svi", "map")
# Number of times that a variational fit updates its progress bar and checks that the loss is finite.
_NUM_REPORTS = 20
# Standard deviation of the initial values of chains, in unconstrained space.
_FIRST_SCALE = 0.3
# Standard deviation of the starts of the search for the mode; they are spread widely, to find several modes.
_SPREAD_OF_STARTS = 0.5


class FitError(RuntimeError):
    """A fit failed because the likelihood or the loss is not finite.

    Example:
      >>> import jax, numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> model = priors.shared()._replace(log_evidence=lambda sites, outcomes: np.full(outcomes.num_prompts, np.nan))
      >>> try:
      ...     priors.fit(model, outcomes, jax.random.key(0), num_chains=1, progress=False)
      ... except priors.FitError as error:
      ...     print(error)
      model 'shared': expected a finite likelihood at the start, got ...
    """


def fit(
    model: PriorModel,
    outcomes: Outcomes,
    key: jax.Array,
    *,
    method: str = "nuts",
    num_warmup: int = 500,
    num_samples: int = 500,
    num_chains: int = 2,
    num_starts: int = 4,
    num_steps: int = 1500,
    learning_rate: float = 0.03,
    batch_size: int | None = None,
    is_tuned: bool = True,
    progress: bool = True,
) -> FitResult:
    """Returns posterior draws of the parameters of a model, and the `TransitionPrior` computed from their means.

    Issues a warning for each problem that the diagnostics show; `FitResult.judgement` contains these warnings too.

    Args:
      model: model as returned by `build` or by one of the functions in `MODELS`.
      outcomes: outcomes as returned by `prepare`.
      key: random key.
      method: "nuts" draws from the posterior by Hamiltonian Monte Carlo. "svi" fits an approximation to the posterior
        by stochastic variational inference, for traces that are too large for NUTS. "map" finds the mode of the
        parameters that all prompts share; parameters of single prompts or prompt groups are not maximised but
        integrated out, with a Dirichlet approximation to their posterior.
      num_warmup: number of warm-up steps of NUTS per chain, which adapt the sampler and are discarded.
      num_samples: number of draws; for NUTS, per chain.
      num_chains: number of chains of NUTS.
      num_starts: number of starting points of the L-BFGS search for the mode; SVI and MAP begin with this search.
      num_steps: for SVI and MAP, largest number of loss evaluations per starting point, and number of stochastic
        gradient steps. MAP takes such steps only with minibatches, or if single prompts or groups have parameters.
      learning_rate: initial learning rate of the stochastic gradient steps; it is annealed to a hundredth of this
        value.
      batch_size: number of prompts in a minibatch of SVI or MAP, and in the random subset that the search for the mode
        uses; None uses all prompts.
      is_tuned: whether to choose the decay and the scale of the prior counts by how well the filter predicts this
        trace; see `tune`. The model "online" learns both numbers itself and is never tuned.
      progress: whether to show a progress bar.

    Raises:
      ValueError: for an option out of range, or outcomes without prompts, or without the groups or features that the
        model needs.
      FitError: if the log density is not finite at the start of some chain (NUTS) or at every starting point (SVI,
        MAP), or if the loss becomes infinite or NaN.

    Example:
      >>> import jax, numpy as np
      >>> from dps_jax import priors, traces
      >>> run = traces.simulate_learners(np.random.default_rng(0), num_prompts=30, num_rounds=8, batch_size=10)
      >>> outcomes = priors.prepare(run.trace)
      >>> result = priors.fit(
      ...     priors.shared(), outcomes, jax.random.key(0), method="map", num_samples=10, is_tuned=False, progress=False
      ... )
      >>> result.draws["transition_matrix"].shape, result.prior.concentration.shape  # one chain of 10 draws; K = 3
      ((1, 10, 3, 3), (3, 3))
    """
    _checks.check_choice("method", method, METHODS)
    if outcomes.num_prompts == 0:
        raise ValueError("outcomes: expected at least one prompt to fit to, got none; take some prompts of the trace")
    sizes = {"num_samples": num_samples, "num_chains": num_chains, "num_steps": num_steps, "num_warmup": num_warmup}
    sizes["num_starts"] = num_starts
    for name, size in sizes.items():
        _checks.check_int(name, size, at_least=1)
    if batch_size is not None:
        _checks.check_int("batch_size", batch_size, at_least=1)
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate: expected a finite number > 0, got {learning_rate}")
    if batch_size is not None and batch_size >= outcomes.num_prompts:
        batch_size = None
    if method == "nuts":
        found, num_divergent = run_nuts(
            model,
            outcomes,
            key,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            progress=progress,
        )
        draws = _parameters(model, found)
        judgement = judge_draws(draws, num_divergent)
    else:
        found, judgement = run_variational(
            model,
            outcomes,
            key,
            is_point=method == "map",
            num_starts=num_starts,
            num_steps=num_steps,
            num_samples=num_samples,
            learning_rate=learning_rate,
            batch_size=batch_size,
            progress=progress,
        )
        draws = _parameters(model, found)
    prior = model.to_prior({name: _mean(values) for name, values in draws.items()}, outcomes)
    if is_tuned and model.name != "online":
        prior = _strength.tune(prior, outcomes)
    judgement = dataclasses.replace(judgement, warnings=(*judgement.warnings, *certain_starts(prior)))
    for words in judgement.warnings:
        warnings.warn(f"{model.name}, {method}: {words}", stacklevel=2)
    return FitResult(model=model.name, method=method, space=model.space, draws=draws, prior=prior, judgement=judgement)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=(0, 1), dtype=np.float64)


def _parameters(model: PriorModel, sites: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Returns the parameters of every draw, [chains, draws, ...]."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(jax.vmap(model.parameters)))(sites))


def sampler(
    found: Density,
    outcomes: Outcomes,
    *,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    progress: bool,
    max_tree_depth: int = 10,
) -> MCMC:
    """Returns a NUTS sampler of unconstrained parameters; its `run` needs `init_params`."""
    return MCMC(
        NUTS(
            potential_fn=lambda values: -found.log_prob(values, outcomes),
            target_accept_prob=0.9,
            max_tree_depth=max_tree_depth,
        ),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=progress,
    )


def first_values(found: Density, key: jax.Array, num_chains: int) -> dict[str, jax.Array]:
    """Returns initial values of chains near the middle of every site's range, [chains, ...], or [...] for one chain."""
    lead = (num_chains,) if num_chains > 1 else ()
    keys = jax.random.split(key, len(found.shapes))
    pairs = zip(found.shapes.items(), keys, strict=True)
    return {name: _FIRST_SCALE * jax.random.normal(key_site, (*lead, *shape)) for (name, shape), key_site in pairs}


def run_nuts(
    model: PriorModel,
    outcomes: Outcomes,
    key: jax.Array,
    *,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    progress: bool,
) -> tuple[dict[str, jax.Array], int]:
    """Returns draws of every site, [chains, draws, ...], and the number of divergent transitions.

    Raises:
      FitError: if the likelihood is not finite at the start of a chain.
    """
    found = density(model, outcomes)
    key_first, key_chains = jax.random.split(key)
    first = first_values(found, key_first, num_chains)
    over_chains = jax.vmap if num_chains > 1 else lambda fn: fn
    start = np.asarray(jax.jit(over_chains(lambda values: found.log_prob(values, outcomes)))(first))
    if not np.all(np.isfinite(start)):
        raise FitError(
            f"model {model.name!r}: expected a finite likelihood at the start, got {start}; some outcome is impossible "
            "under it, or the outcomes contain NaN"
        )
    sizes = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    chains = sampler(found, outcomes, **sizes, progress=progress)
    chains.run(key_chains, init_params=first, extra_fields=("diverging",))
    sites = jax.jit(jax.vmap(jax.vmap(found.constrain)))(chains.get_samples(group_by_chain=True))
    return sites, int(np.sum(chains.get_extra_fields()["diverging"]))


def find_mode(
    problem: _variational.Problem,
    outcomes: Outcomes,
    key: jax.Array,
    *,
    num_starts: int,
    num_steps: int,
    batch_size: int | None = None,
    progress: bool = False,
    name: str = "",
) -> list[_mode.Mode]:
    """Returns the modes of the shared parameters that L-BFGS finds, best first.

    Args:
      problem: problem from `_variational.problem`; parameters of single prompts or groups are set to the mean of their
        prior.
      outcomes: outcomes to fit to.
      key: random key of the starts and the minibatch; the first start is near the middle of every site's range.
      num_starts: number of searches, one per start.
      num_steps: largest number of loss evaluations per search.
      batch_size: number of prompts to use, drawn at random; None uses all prompts.
      progress: whether to show a progress bar.
      name: title of the progress bar.

    Raises:
      FitError: if no start has a finite loss.
    """
    key_starts, key_batch = jax.random.split(key)
    weight = 1.0
    if batch_size is not None:
        weight = outcomes.num_prompts / batch_size
        outcomes = outcomes.take(jax.random.choice(key_batch, outcomes.num_prompts, (batch_size,), replace=False))
    compiled = jax.jit(
        jax.value_and_grad(lambda values, outcomes: _variational.loss_at(problem, values, outcomes, weight))
    )
    starts = np.array(_SPREAD_OF_STARTS * jax.random.normal(key_starts, (num_starts, problem.size)))
    starts[0] *= _FIRST_SCALE
    found = []
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bars:
        bar = bars.add_task(f"{name}, mode", total=None)
        for index, start in enumerate(starts):
            bars.update(bar, description=f"{name}, mode, start {index + 1} of {num_starts}")
            found.append(
                _mode.minimise(
                    lambda values: compiled(values, outcomes),
                    start,
                    max_evaluations=num_steps,
                    report=lambda: bars.advance(bar),
                )
            )
    found.sort(key=lambda one: one.loss)
    if not _mode.is_finite(found[0]):
        raise FitError(
            f"{name}: expected a finite loss at one of {num_starts} starts, got none; some outcome is impossible under "
            "the model, or the outcomes, groups or features contain NaN"
        )
    return found


def run_variational(
    model: PriorModel,
    outcomes: Outcomes,
    key: jax.Array,
    *,
    is_point: bool,
    num_starts: int,
    num_steps: int,
    num_samples: int,
    learning_rate: float,
    batch_size: int | None,
    progress: bool,
) -> tuple[dict[str, jax.Array], Judgement]:
    """Returns draws of every site, [1, draws, ...], and diagnostics.

    If `is_point`, only the sites of single prompts or groups vary between draws.

    Raises:
      FitError: if the loss is not finite.
    """
    problem = _variational.problem(model, density(model, outcomes), is_point=is_point)
    key_mode, key_draws, key_steps = jax.random.split(key, 3)
    modes = find_mode(
        problem,
        outcomes,
        key_mode,
        num_starts=num_starts,
        num_steps=num_steps,
        batch_size=batch_size,
        progress=progress,
        name=model.name,
    )
    best = jnp.asarray(modes[0].values, jnp.float32)
    approximation = jax.jit(lambda values, outcomes: _variational.init(problem, values, outcomes))(best, outcomes)
    if is_point and not problem.members and batch_size is None:
        judgement = judge_modes(modes)
    else:
        approximation, losses = _descend(
            problem, approximation, outcomes, key_steps, model.name, num_steps, learning_rate, batch_size, progress
        )
        judgement = judge_losses(losses)
    draw = lambda key: _variational.draw(problem, approximation, key)[0]
    sites = jax.jit(jax.vmap(draw))(jax.random.split(key_draws, num_samples))
    return jax.tree.map(lambda values: values[None], sites), judgement


def _descend(problem, approximation, outcomes, key, name, num_steps, learning_rate, batch_size, progress):
    """Returns the approximation after stochastic gradient steps, and the loss of every step, nats."""
    adam = _variational.optimiser(learning_rate, num_steps)
    part = -(-num_steps // _NUM_REPORTS)

    @jax.jit
    def advance(approximation: Any, opt_state: Any, outcomes: Outcomes, key: jax.Array):
        return _variational.take_steps(
            problem, adam, approximation, opt_state, outcomes, key, num_steps=part, batch_size=batch_size
        )

    opt_state, losses = adam.init(approximation), []
    bar = functools.partial(track, description=f"{name}, steps", console=Console(stderr=True), transient=True)
    parts = range(-(-num_steps // part))
    for index in bar(parts) if progress else parts:
        key_part = jax.random.fold_in(key, index)
        approximation, opt_state, some = advance(approximation, opt_state, outcomes, key_part)
        losses.append(np.asarray(some))
        if not np.all(np.isfinite(losses[-1])):
            raise FitError(
                f"model {name!r}: expected a finite loss, got {losses[-1][~np.isfinite(losses[-1])][0]} before "
                f"step {(index + 1) * part}; lower learning_rate"
            )
    return approximation, np.concatenate(losses)
