"""Simulation-based calibration of the models of transition priors.

Parameters are drawn from the prior of a model, and a trace is simulated with them by code that shares nothing with the
filters. Then the model is fitted to the trace by NUTS. If everything is correct, the rank of the true value among the
posterior draws is uniformly distributed, and 90 % intervals contain the true value with a probability of 90 %. Writes
results.json, table.md and ranks.png. Finished fits are kept in a folder per model, so that an interrupted run can
continue.

Source: Talts et al., Validating Bayesian inference algorithms with simulation-based calibration, arXiv 1804.06788.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import _machine
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from scipy import stats

from dps_jax import _checks, _cli, _json, priors, traces
from dps_jax.hmm import emissions
from dps_jax.priors._density import density
from dps_jax.priors._fit import first_values, sampler
from dps_jax.priors._parts import numpyro_model

_NUM_GROUPS, _NUM_FEATURES = 4, 2


@dataclasses.dataclass(frozen=True)
class Config:
    """The models, and the traces to simulate."""

    models: tuple[str, ...] = tuple(priors.MODELS)
    """Models of the transition matrices: some of "shared", "hierarchical", "grouped", "covariates" and "online"."""
    emissions: tuple[str, ...] = ("exact", "beta-binomial")
    """Emission models: some of "exact" (unsolved, partially solved and solved are observed as such), "binomial" and
    "beta-binomial" (the number of correct completions is observed)."""
    skip: tuple[str, ...] = ()
    """Combinations MODEL-EMISSION to leave out, such as hierarchical-beta-binomial, which takes an hour."""
    is_split: bool = False
    """Fit two matrices: one for rounds in which the prompt was rolled out, and one for rounds in which it was not."""
    num_datasets: int = 100
    """Number of simulated traces per model and emission."""
    num_prompts: int = 60
    """Number of prompts of a trace, N."""
    num_rounds: int = 15
    """Number of rounds of a trace, T."""
    batch_size: int = 30
    """Number of prompts that are visited in a round."""
    group_size: int = 8
    """Number of completions per prompt, G."""
    num_warmup: int = 300
    """Number of warm-up steps of NUTS before the draws."""
    num_draws: int = 99
    """Number of posterior draws that a true value is ranked among."""
    thin: int = 4
    """Number of steps of NUTS per draw."""
    max_tree_depth: int = 6
    """Maximum tree depth of NUTS: a trajectory has at most 2**max_tree_depth steps. If traces are fitted together, the
    longest trajectory determines the time of all."""
    num_together: int = 100
    """Number of traces that are fitted together in one compiled program."""
    hierarchical_prompts: int = 24
    """Number of prompts of a trace for the model "hierarchical", which has parameters for every prompt; half of the
    prompts are visited in a round."""
    hierarchical_slowdown: int = 3
    """Factor of --num-warmup and --thin for the model "hierarchical", whose chains mix slowly; its --max-tree-depth is
    larger by one."""
    num_bins: int = 10
    """Number of bins of a rank histogram, a divisor of num_draws + 1."""
    out_dir: Path = Path("runs/calibrate_priors")
    """Folder for results.json, table.md and ranks.png."""

    def __post_init__(self):
        for model in self.models:
            _checks.check_choice("models", model, priors.MODELS)
        for emission in self.emissions:
            _checks.check_choice("emissions", emission, priors.EMISSIONS)
        known = [f"{model}-{emission}" for model in self.models for emission in self.emissions]
        for row in self.skip:
            _checks.check_choice("skip", row, known)
        _checks.check_int("batch_size", self.batch_size, at_least=1, at_most=self.num_prompts)
        _checks.check_int("hierarchical_prompts", self.hierarchical_prompts, at_least=2)
        _checks.check_int("hierarchical_slowdown", self.hierarchical_slowdown, at_least=1)
        for name in ("num_datasets", "num_rounds", "num_warmup", "num_draws", "thin", "num_together", "num_bins"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        if (self.num_draws + 1) % self.num_bins:
            raise ValueError(f"num_bins: expected a divisor of {self.num_draws + 1}, got {self.num_bins}")

    def of_model(self, name: str) -> Config:
        """Returns the config for one model; the model "hierarchical" has its own sizes."""
        if name != "hierarchical":
            return self
        return dataclasses.replace(
            self,
            num_prompts=self.hierarchical_prompts,
            batch_size=self.hierarchical_prompts // 2,
            num_warmup=self.hierarchical_slowdown * self.num_warmup,
            thin=self.hierarchical_slowdown * self.thin,
            max_tree_depth=self.max_tree_depth + 1,
        )


def side_information(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns groups [N] and features [N, D], the same for all traces."""
    rng = np.random.default_rng(0)
    groups = np.arange(config.num_prompts) % _NUM_GROUPS
    return groups, rng.normal(size=(config.num_prompts, _NUM_FEATURES)).astype(np.float32)


def to_outcomes(config: Config, trace: traces.Trace) -> priors.Outcomes:
    """Returns the outcomes of a trace, [T, N] for every trace, as prompts without visits are kept."""
    groups, features = side_information(config)
    codes = np.zeros((config.num_rounds, config.num_prompts), np.int32)
    codes[trace.rounds, trace.prompt_ids] = 1 + trace.successes
    kinds = np.arange(-1, config.group_size + 1)
    return priors.Outcomes(
        codes=jnp.asarray(codes),
        successes=jnp.asarray(np.maximum(kinds, 0), jnp.int32),
        counts=jnp.asarray(np.where(kinds < 0, 0, config.group_size), jnp.int32),
        prompt_ids=np.arange(config.num_prompts),
        groups=jnp.asarray(groups, jnp.int32),
        features=jnp.asarray(features),
    )


def distributions(
    config: Config, model: str, sites: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Returns initial_probs [K, N] and a matrix [K, K, N] per kind of move; shares no code with the models."""
    groups, features = side_information(config)
    kinds = ("", "trained_") if config.is_split else ("",)
    if model == "shared":
        every = [found["initial_probs"], *(found[f"{kind}transition_matrix"] for kind in kinds)]
        return [np.repeat(distribution[..., None], config.num_prompts, axis=-1) for distribution in every]
    if model == "hierarchical":
        initial = np.repeat(found["initial_probs"][:, None], config.num_prompts, axis=1)
        return [initial, *(np.moveaxis(sites[f"{kind}rows"], 0, -1) for kind in kinds)]
    if model == "grouped":
        rows = [np.moveaxis(found[f"{kind}group_rows"][groups], 0, -1) for kind in kinds]
        return [found["group_initial"][groups].T, *rows]

    def softmax(name: str, weights: str) -> np.ndarray:
        odds = np.exp(features @ found[f"{weights}_weights"] + found[f"{name}_intercept"])
        odds = np.concatenate([np.ones((config.num_prompts, 1)), odds], axis=1)
        return (odds / odds.sum(axis=1, keepdims=True)).T

    every = [softmax("initial", "initial")]
    for kind in kinds:
        moves, stationary = found[f"{kind}mobility"], softmax(f"{kind}stationary", "stationary")
        matrix = np.zeros((len(moves), len(moves), config.num_prompts))
        for n in range(config.num_prompts):
            target = moves * stationary[:, n] / (moves @ stationary[:, n])
            matrix[:, :, n] = np.diag(1 - moves) + np.outer(moves, target)
        every.append(matrix)
    return every


def draw_counts(rng: np.random.Generator, emission: emissions.Emission, states: np.ndarray, size: int) -> np.ndarray:
    """Returns a random number of successes out of `size` for each of some states, [P]."""
    if emission.success_rates is None:
        inside = rng.integers(1, size, states.size)
        return np.where(states == 0, 0, np.where(states == emission.num_states - 1, size, inside))
    rates = np.asarray(emission.success_rates)[states]
    if emission.precision is not None:
        rates = rng.beta(rates * emission.precision, (1 - rates) * emission.precision)
    return rng.binomial(size, rates)


def simulate_online(
    config: Config, rng: np.random.Generator, found: dict[str, np.ndarray], emission: emissions.Emission
) -> traces.Trace:
    """Returns a trace drawn from the predictions of the filter (docs/concepts/method.md), computed in float64."""
    num_states, size = emission.num_states, config.group_size
    prior = found["concentration"]
    trained = found.get("trained_concentration", prior)
    belief = np.repeat(found["initial_probs"][None], config.num_prompts, axis=0)
    learned, was_seen = np.zeros((config.num_prompts, num_states, num_states)), np.zeros(config.num_prompts, bool)
    rows = []
    for index in range(config.num_rounds):
        counts = np.where(was_seen[:, None, None], trained, prior) + learned
        matrix = counts / counts.sum(axis=2, keepdims=True)
        predicted = belief if index == 0 else np.einsum("ni,nij->nj", belief, matrix)
        ids = np.sort(rng.permutation(config.num_prompts)[: config.batch_size])
        draws = rng.random((ids.size, 1)) > np.cumsum(predicted[ids], axis=1)[:, :-1]
        successes = draw_counts(rng, emission, draws.sum(axis=1), size)
        if emission.success_rates is None:
            seen = np.eye(num_states)[np.where(successes == 0, 0, np.where(successes == size, num_states - 1, 1))]
        else:
            rates = np.asarray(emission.success_rates)[:, None]
            precision, every = emission.precision, np.arange(size + 1)
            if precision is None:
                probs = stats.binom.pmf(every, size, rates)
            else:
                probs = stats.betabinom.pmf(every, size, rates * precision, (1 - rates) * precision)
            seen = probs.T[successes]
        joint = belief[ids][:, :, None] * matrix[ids] * seen[:, None, :]
        learned *= found["decay"]
        learned[ids] += joint / joint.sum(axis=(1, 2), keepdims=True)
        belief = predicted.copy()
        posterior = predicted[ids] * seen
        belief[ids] = posterior / posterior.sum(axis=1, keepdims=True)
        was_seen = np.isin(np.arange(config.num_prompts), ids)
        rows.append(np.stack([np.full(ids.size, index), ids, successes, np.full(ids.size, size)]))
    return traces.Trace(*np.concatenate(rows, axis=1).astype(np.int32))


def simulate(
    config: Config, rng: np.random.Generator, model: priors.PriorModel, sites: dict[str, np.ndarray], found: Any
) -> priors.Outcomes:
    """Returns the outcomes of a trace that is simulated with the given parameters."""
    emission = model.space.to_emission(found)
    if model.name == "online":
        return to_outcomes(config, simulate_online(config, rng, found, emission))
    initial_probs, *matrices = distributions(config, model.name, sites, found)
    simulated = traces.simulate_hmm(
        rng,
        initial_probs / initial_probs.sum(axis=0),
        matrices[0] / matrices[0].sum(axis=1, keepdims=True),
        emission,
        num_rounds=config.num_rounds,
        num_prompts=config.num_prompts,
        batch_size=config.batch_size,
        group_size=config.group_size,
        trained_matrix=matrices[1] / matrices[1].sum(axis=1, keepdims=True) if config.is_split else None,
    )
    return to_outcomes(config, simulated.trace)


def check_same(config: Config, folder: Path) -> None:
    """Raises a ValueError if the results in the folder were made with other options."""
    changing = ("models", "emissions", "skip", "num_datasets", "num_bins", "out_dir")
    # `of_model` has applied these two to the other options.
    changing += ("hierarchical_prompts", "hierarchical_slowdown")
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in changing}
    path = folder / "options.json"
    if not any(folder.glob("traces_*.npz")):
        _json.write(path, options)
        return
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if saved != options:
        raise ValueError(
            f"out_dir: expected results made with {options} in {folder}, got {saved}; choose another --out-dir"
        )


def calibrate(config: Config, name: str, emission: str, console: Console) -> dict[str, Any]:
    """Returns the ranks of the true values for one model, per parameter and trace, and the number of divergences."""
    empty = traces.Trace(*(np.zeros(0, np.int32),) * 4)
    template = to_outcomes(config, empty)
    model = priors.build(name, template, emission=emission, is_split=config.is_split)
    folder = config.out_dir / f"{name}-{emission}{'-split' if config.is_split else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    check_same(config, folder)

    def draw_sites(key: jax.Array) -> dict[str, jax.Array]:
        trace = numpyro.handlers.trace(numpyro.handlers.seed(numpyro_model(model), key)).get_trace(template)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}

    def fit(key: jax.Array, outcomes: priors.Outcomes) -> tuple[dict[str, jax.Array], jax.Array]:
        found = density(model, outcomes)
        key_first, key_chain = jax.random.split(key)
        chain = sampler(
            found,
            outcomes,
            num_warmup=config.num_warmup,
            num_samples=config.num_draws * config.thin,
            num_chains=1,
            progress=False,
            max_tree_depth=config.max_tree_depth,
        )
        chain.run(key_chain, init_params=first_values(found, key_first, 1), extra_fields=("diverging",))
        thinned = jax.tree.map(lambda leaf: leaf[config.thin - 1 :: config.thin], chain.get_samples())
        parameters = jax.vmap(lambda values: model.parameters(found.constrain(values)))(thinned)
        return parameters, jnp.sum(chain.get_extra_fields()["diverging"])

    fit_all, draw_all = jax.jit(jax.vmap(fit)), jax.jit(jax.vmap(draw_sites))
    parts: list[dict[str, np.ndarray]] = []
    starts = range(0, config.num_datasets, config.num_together)
    for start in track(starts, description=f"{name}, {emission}", console=console, disable=not console.is_terminal):
        path = folder / f"traces_{start:05d}.npz"
        if not path.exists():
            # The key depends on the part only, so that a continued run gives the same results.
            key_sites, key_fit = jax.random.split(jax.random.fold_in(jax.random.key(7), start))
            sites = draw_all(jax.random.split(key_sites, config.num_together))
            truth = jax.tree.map(np.asarray, jax.jit(jax.vmap(model.parameters))(sites))
            sites = jax.tree.map(np.asarray, sites)
            rng = np.random.default_rng(start)
            of = lambda tree, index: {k: np.asarray(v[index], np.float64) for k, v in tree.items()}
            data = [
                simulate(config, rng, model, of(sites, index), of(truth, index)) for index in range(config.num_together)
            ]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
            draws, num_divergent = fit_all(jax.random.split(key_fit, config.num_together), stacked)
            part: dict[str, np.ndarray] = {"num_divergent": np.asarray(num_divergent)}
            for parameter, values in draws.items():
                values = np.asarray(values)
                part[f"rank:{parameter}"] = np.sum(values < truth[parameter][:, None], axis=1)
            np.savez_compressed(path.with_suffix(".partial.npz"), **part)  # pyright: ignore[reportArgumentType]
            path.with_suffix(".partial.npz").rename(path)
        with np.load(path) as columns:
            parts.append(dict(columns))
        console.print(f"{name}, {emission}: {start + config.num_together} traces", highlight=False)
    return {k: np.concatenate([part[k] for part in parts])[: config.num_datasets] for k in parts[0]}


def judge(config: Config, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns p values of chi-square tests of the rank histograms and the coverage, per scalar parameter and in all."""
    rows = []
    for name in (key.removeprefix("rank:") for key in found if key.startswith("rank:")):
        ranks = found[f"rank:{name}"].reshape(config.num_datasets, -1)
        # The interval is between two draws. Quantiles interpolated between draws would have a lower coverage.
        tail = 0.05 * (config.num_draws + 1)
        holds = (ranks >= tail) & (ranks < config.num_draws + 1 - tail)
        for place in range(ranks.shape[1]):
            histogram = np.bincount(
                ranks[:, place] * config.num_bins // (config.num_draws + 1), minlength=config.num_bins
            )
            rows.append(
                {
                    "parameter": f"{name}[{place}]",
                    "p_value": float(stats.chisquare(histogram).pvalue),
                    "coverage": float(holds[:, place].mean()),
                    "histogram": histogram.tolist(),
                }
            )
    p_values = np.array([row["p_value"] for row in rows])
    return {
        "num_datasets": config.num_datasets,
        "num_parameters": len(rows),
        "smallest_p_value": float(p_values.min()),
        # Bonferroni correction of the smallest p value, which is the first step of Holm's method.
        "adjusted_p_value": float(min(1.0, p_values.min() * len(rows))),
        "share_below_0.01": float(np.mean(p_values < 0.01)),
        "coverage": float(np.mean([row["coverage"] for row in rows])),
        "smallest_coverage": min(row["coverage"] for row in rows),
        "largest_coverage": max(row["coverage"] for row in rows),
        "divergent_per_trace": float(found["num_divergent"].mean()),
        "parameters": rows,
    }


def to_markdown(results: dict[str, Any], config: Config) -> str:
    """Returns the table, followed by a note on its columns."""
    lines = [
        "| model | emission | prompts x rounds, visits per round | parameters | smallest p value (times parameters) | "
        "p < 0.01 | coverage of 90 % intervals | lowest, highest |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["models"]:
        lines.append(
            f"| {row['model']}{', two matrices' if row['is_split'] else ''} | {row['emission']} | "
            f"{row['num_prompts']} x {row['num_rounds']}, {row['batch_size']} | {row['num_parameters']} | "
            f"{row['smallest_p_value']:.3f} ({row['adjusted_p_value']:.2f}) | {row['share_below_0.01']:.0%} | "
            f"{row['coverage']:.1%} | {row['smallest_coverage']:.1%}, {row['largest_coverage']:.1%} |"
        )
    lines += [
        "",
        f"{config.num_datasets} simulated traces per row. The p values come from tests of whether the ranks among "
        f"{config.num_draws} draws, in {config.num_bins} bins, are uniform, one test per parameter; the smallest of "
        "them times the number of parameters (a Bonferroni correction) is cut off at 1. `p < 0.01`: share of the "
        "parameters. Coverage: mean over the parameters, and the lowest and highest of a single parameter, whose "
        f"standard error is {100 * np.sqrt(0.09 / config.num_datasets):.1f} points.",
    ]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], config: Config, path: Path) -> None:
    """Plots the rank histograms of all parameters of a model in one panel, with the 99 % interval of uniform ranks."""
    rows = results["models"]
    columns = min(len(rows), 5)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    share = 1 / config.num_bins
    error = 2.576 * np.sqrt(config.num_datasets * share * (1 - share))
    centre = config.num_datasets * share
    for axes, row in zip(grid.flat, rows, strict=False):
        for parameter in row["parameters"]:
            axes.stairs(parameter["histogram"], color="C0", alpha=0.35, linewidth=0.8)
        axes.axhspan(centre - error, centre + error, color="0.85", zorder=0)
        axes.set_title(f"{row['model']}, {row['emission']}", fontsize="small")
        axes.set(ylim=(0, 2.5 * centre), xlabel="rank of the true value", ylabel="traces")
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=120)


def main(config: Config) -> dict[str, Any]:
    """Simulates, fits and writes the results, and returns them."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    rows = []
    for name in config.models:
        for emission in config.emissions:
            if f"{name}-{emission}" in config.skip:
                continue
            own = config.of_model(name)
            sizes = {"num_prompts": own.num_prompts, "num_rounds": own.num_rounds, "batch_size": own.batch_size}
            found = calibrate(own, name, emission, console)
            judgement = judge(own, found)
            rows.append({"model": name, "emission": emission, "is_split": config.is_split, **sizes, **judgement})
    options = json.loads(json.dumps(dataclasses.asdict(config) | {"out_dir": config.out_dir.name}, default=str))
    results = {"config": options, "machine": _machine.describe_machine(), "models": rows}
    _json.write(config.out_dir / "results.json", results, indent=1)
    table = to_markdown(results, config)
    (config.out_dir / "table.md").write_text(table, encoding="utf-8")
    plot(results, config, config.out_dir / "ranks.png")
    console.print(table, markup=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
