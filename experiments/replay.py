"""Replays logged traces through every predictor: predict each visit first, then observe its outcome.

    python experiments/replay.py                                  # simulated learners, and logged runs on Countdown
    python experiments/replay.py --traces my/trace.csv            # this trace only
    python experiments/replay.py --traces my/trace.csv --methods binomial_hmm arcsine dps

Every predictor receives the same visits in the same order, and predicts each visit before it observes the outcome. The
predictions are scored by log loss of m out of G (the main score), Brier score and calibration of P(0 < m < G), AUC,
rank correlation, coverage of intervals, and skill, which is 0 for the base rate and 1 for an oracle. The oracle uses
the true success rates of simulated learners; for a real trace it uses the other visits of the prompt, past and future.
Then selectors choose prompts for simulated learners in closed loop. Writes results.json, table.md, skill.png and
reliability.png. The results for each trace are kept, so that an interrupted run can continue. Compiled programs are
cached in the folder programs/, which can be deleted afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _folders
import _machine
import _parts
import _replay_report
import _side_information
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy import stats

from dps_jax import _checks, _cli, _files, _json, predictors, selectors, traces
from dps_jax.hmm import TransitionPrior, resolve_prior
from dps_jax.traces import ColumnNames, scores
from dps_jax.traces.panel import Panel, read_panel, replay_panel
from dps_jax.traces.replay import Visits, replay_own_counts, visits_of
from dps_jax.types import Predictor

DATA = Path(__file__).resolve().parent / "data"
TRACES, PANELS = DATA / "traces", DATA / "panel"
# Sources that are replayed if no traces are given.
_USUAL = {
    "regimes": tuple(traces.REGIMES),
    "runs": ("dense-1", "uniform-1", "dps-1"),
    "panels": ("uniform-1", "uniform-2", "dps-1", "dps-2", "binomial_hmm-1"),
}
DPS_DECAYS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
# Decays of binomial_hmm with a single decay in place of its bank.
FIXED_DECAYS = (0.5, 0.65, 0.8, 0.9, 0.97, 1.0)


class Source(NamedTuple):
    """A trace to replay.

    Attributes:
      visits: visits of the trace.
      groups: prompt group of each prompt, int [N]; None if unknown.
      features: features of each prompt, [N, D]; None without features.
      rates: true success rates of the visits, float64 [R]; None if unknown.
      group_size: number of completions, G, for which predictors are built.
    """

    visits: Visits
    groups: np.ndarray | None
    features: np.ndarray | None
    rates: np.ndarray | None
    group_size: int


# For sources of which only groups and features are needed.
_NO_VISITS = Visits(*(np.zeros(0, np.int32) for _ in range(5)))

Build = Callable[[Source], Predictor]
# binomial_hmm without groups and features.
COUNTS_ONLY = "binomial_hmm, counts only"
# The other methods are compared with the first one.
METHODS = ("binomial_hmm", COUNTS_ONLY, *(name for name in predictors.PREDICTORS if name != "binomial_hmm"))
CLOSED_LOOP = ("binomial_hmm", "shared_net", "arcsine", "mopps", "queue", "dps", "uniform")


@dataclasses.dataclass(frozen=True)
class Config:
    """The traces, predictors and closed loops to run."""

    traces: tuple[Path, ...] = ()
    """Your own traces: files or folders, in any format that docs/traces.md lists. If prompts.npz is beside a trace, its
    prompt groups and features are used; docs/traces.md describes this file."""
    regimes: tuple[str, ...] | None = None
    """Names of regimes of simulated learners; by default all, or none if you name traces of your own."""
    runs: tuple[str, ...] | None = None
    """Logged runs of experiments/train.py, by name in experiments/data/traces/; by default dense-1, uniform-1 and
    dps-1, or none if you name traces of your own."""
    panels: tuple[str, ...] | None = None
    """Panels, by name in experiments/data/panel/: logged runs of experiments/train.py in which all prompts were sampled
    every few rounds; by default five of them, or none if you name traces of your own."""
    columns: ColumnNames = dataclasses.field(default_factory=ColumnNames)
    """Names of the columns of your own traces, where they differ from those that trainers use."""
    threshold: float | None = None
    """Smallest reward that counts as correct in your own traces; by default rewards must be 0 or 1."""
    methods: tuple[str, ...] = METHODS
    """Names of predictors: "binomial_hmm", "binomial_hmm, counts only", "shared_net", "arcsine", "logit_kalman",
    "mopps", "ema_variance", "last_state", "queue", "dps", "constant", and those that a module of --import registers."""
    priors: tuple[Path, ...] = ()
    """Transition priors that experiments/fit_prior.py wrote, or `TransitionPrior.save`; each is a further method,
    `dps` with this prior."""
    num_seeds: int = 5
    """Number of simulated traces per regime."""
    num_loop_seeds: int = 10
    """Number of closed loops per regime and selector."""
    first_seed: int = 1000
    """First of the consecutive seeds of simulated traces and closed loops. Seeds below 1000 were used to choose the
    defaults of methods."""
    num_prompts: int = 600
    """Number of prompts of a simulated trace; the regime cold has ten times as many."""
    num_rounds: int = 100
    """Number of rounds of a simulated trace and of a closed loop."""
    batch_size: int = 64
    """Number of prompts per round of a simulated trace and of a closed loop."""
    closed_loop: bool = True
    """Whether selectors also choose prompts for the simulated learners in closed loop."""
    out_dir: Path | None = None
    """Folder of the results; by default runs/replay, or a folder beside it that is named after your own traces."""

    def __post_init__(self):
        for name, usual in _USUAL.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, () if self.traces else usual)
        for regime in self.regimes or ():
            _checks.check_choice("regimes", regime, traces.REGIMES)
        for method in self.methods:
            _checks.check_choice("methods", method, (*predictors.PREDICTORS, COUNTS_ONLY))
        for prior in self.priors:
            TransitionPrior.load(prior)
        if len({*map(of_prior, self.priors)}) < len(self.priors):
            raise ValueError(
                f"priors: expected files of different names, got {list(map(str, self.priors))}; rename one"
            )
        for name in ("num_seeds", "num_loop_seeds", "num_prompts", "num_rounds", "batch_size"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        _checks.check_int("batch_size", self.batch_size, at_most=self.num_prompts, at_least=1)

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        if self.out_dir is not None:
            return self.out_dir
        return Path("runs") / (f"replay-{_folders.traces_label(self.traces)}" if self.traces else "replay")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods, and of `dps` with each of the priors."""
        return (*self.methods, *map(of_prior, self.priors))

    def prompts_of(self, regime: str) -> int:
        """Returns the number of prompts of a simulated trace, N."""
        return 10 * self.num_prompts if regime == "cold" else self.num_prompts


def simulated(config: Config, regime: str, seed: int) -> Source:
    """Returns a simulated trace of a regime, in which prompts are visited uniformly."""
    sizes = {"num_prompts": config.prompts_of(regime), "num_rounds": config.num_rounds}
    learners = traces.simulate_learners(np.random.default_rng(seed), regime, **sizes, batch_size=config.batch_size)
    visits = visits_of(learners.trace, config.prompts_of(regime))
    return Source(visits, learners.groups, learners.features, learners.visited_rates.ravel(), 8)


def logged(trace: traces.Trace, groups: np.ndarray | None = None) -> Source:
    """Returns the source of a logged trace; `groups` are by prompt id."""
    visits = visits_of(trace, None if groups is None else int(trace.prompt_ids.max()) + 1)
    return Source(visits, groups, None, None, int(visits.counts.max()))


def own_trace(config: Config, path: Path) -> Source:
    """Returns the source of a user's trace, with the prompt groups and features from the file beside it."""
    source = logged(traces.read_trace(path, config.columns, threshold=config.threshold))
    beside = _side_information.beside(path)
    if not beside.is_file():
        return source
    known = _side_information.of_prompts(beside, source.visits.prompt_ids)
    return source._replace(groups=known["groups"], features=known["features"])


class Job(NamedTuple):
    """A source to replay.

    Attributes:
      make: () -> the source.
      content: digest of the data that were read for the source; "" if it depends on the options only.
    """

    make: Callable[[], Source]
    content: str = ""


def job_of(source: Source) -> Job:
    """Returns the job of a source that was read from a file."""
    digest = hashlib.sha256()
    for column in (*source.visits, source.groups, source.features):
        digest.update(b"none" if column is None else f"{column.dtype} {column.shape} ".encode() + column.tobytes())
    return Job(lambda: source, digest.hexdigest())


def sources_of(config: Config) -> dict[str, list[Job]]:
    """Returns the jobs of all sources, by name, with one job per seed."""
    seeds = range(config.first_seed, config.first_seed + config.num_seeds)
    found: dict[str, list[Job]] = {}
    for regime in config.regimes or ():
        found[regime] = [Job(lambda regime=regime, seed=seed: simulated(config, regime, seed)) for seed in seeds]
    for run in config.runs or ():
        path = TRACES / f"{run}.npz"
        if not path.exists():
            raise ValueError(f"runs: expected one of {sorted(p.stem for p in TRACES.glob('*.npz'))}, got {run!r}")
        with np.load(path) as columns:
            groups = columns["groups"]
        found[f"main job, {run}"] = [job_of(logged(traces.read_trace(path), groups))]
    for path in config.traces:
        found[str(path)] = [job_of(own_trace(config, path))]
    return found


def smoothing_oracle(source: Source) -> np.ndarray:
    """Returns the distribution of each outcome given the other visits of its prompt, float64 [R, largest count + 1].

    The success rate of a visit has a Beta distribution, whose counts are the past and future visits of the prompt,
    discounted by their distance in rounds. Prior and discount are those that predict the trace best. The oracle uses
    the future but not the other prompts, so a predictor can be better if prompts have few visits.
    """
    rounds, ids = source.visits.rounds, source.visits.ids
    hits, sizes = source.visits.successes.astype(np.float64), source.visits.counts.astype(np.float64)
    share, outcomes = hits.sum() / sizes.sum(), np.arange(source.visits.counts.max() + 1)
    best, best_loss = np.ones((2, ids.size)), np.inf
    for discount in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0):
        both = np.stack([hits, sizes - hits])
        weighted = _discounted(ids, rounds, both, discount) + _discounted(ids, -rounds, both, discount)
        for strength in (0.2, 0.5, 1.0, 2.0):
            found = weighted + strength * np.array([[share], [1 - share]])
            loss = -stats.betabinom.logpmf(hits, sizes, *found).mean()
            if loss < best_loss:
                best, best_loss = found, loss
    return stats.betabinom.pmf(outcomes, source.visits.counts[:, None], *best[..., None])


def _discounted(ids: np.ndarray, rounds: np.ndarray, values: np.ndarray, discount: float) -> np.ndarray:
    """Returns, for every visit, the discounted sum of the values of earlier visits of its prompt, [2, R]."""
    found = np.zeros_like(values)
    sums: dict[int, tuple[int, np.ndarray]] = {}
    for row in np.argsort(rounds, kind="stable"):
        before = sums.get(int(ids[row]))
        total = np.zeros(2) if before is None else before[1] * discount ** int(rounds[row] - before[0])
        found[:, row] = total
        sums[int(ids[row])] = (int(rounds[row]), total + values[:, row])
    return found


def oracle_probs(source: Source) -> np.ndarray:
    """Returns the distributions of outcomes that the oracle predicts, [R, largest count + 1]."""
    if source.rates is None:
        return smoothing_oracle(source)
    counts = source.visits.counts
    return stats.binom.pmf(np.arange(counts.max() + 1), counts[:, None], source.rates[:, None])


def visits_before(visits: Visits) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for every visit, the number of earlier ones and the rounds since the last (0 if none), int [R] each."""
    # Visits are in order of rounds, and a stable sort by prompt keeps this order within a prompt.
    order = np.argsort(visits.ids, kind="stable")
    ids, rounds = visits.ids[order], visits.rounds[order]
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    number, gaps = np.empty((2, ids.size), int)
    number[order] = np.arange(ids.size) - np.repeat(starts, np.diff(np.append(starts, ids.size)))
    gaps[order] = np.append(0, np.diff(rounds))
    return number, np.where(number == 0, 0, gaps)


def score(probs: np.ndarray, visits: Visits, is_counted: np.ndarray) -> dict[str, Any]:
    """Returns all scores over the visits in `is_counted` [R], each at its own number of completions."""
    if not is_counted.any():
        return {"visits": 0}
    of_visits, successes, counts = probs[is_counted], visits.successes[is_counted], visits.counts[is_counted]
    return {
        "visits": int(is_counted.sum()),
        "log_loss": float(scores.log_losses(of_visits, successes).mean()),
        "brier": float(scores.brier_scores(of_visits, successes, counts).mean()),
        "reliability_error": scores.reliability_error(of_visits, successes, counts=counts),
        "auc": scores.auc(of_visits, successes, counts),
        "spearman": scores.spearman(of_visits, successes, counts),
        "coverage_error": scores.interval_coverage(of_visits, successes),
    }


def build(method: str, source: Source) -> Predictor:
    """Returns a predictor for a trace."""
    if method == COUNTS_ONLY:
        return predictors.binomial_hmm(group_size=source.group_size)
    return predictors.build(method, group_size=source.group_size, group_ids=source.groups, features=source.features)


def of_prior(path: Path) -> str:
    """Returns the name of the method that is `dps` with a saved prior; fit_prior.py writes NAME/prior.json."""
    return f"dps, prior {path.resolve().parent.name if path.name == 'prior.json' else path.stem}"


def build_with_prior(prior: TransitionPrior, source: Source) -> Predictor:
    """Returns the predictor of `dps` with a prior, for a trace."""
    return predictors.hmm(prior, group_ids=source.groups, group_size=source.group_size)


def named_builders(config: Config) -> dict[str, Build]:
    """Returns the methods of the config, and `dps` with each of its priors."""
    found: dict[str, Build] = {method: functools.partial(build, method) for method in config.methods}
    for path in config.priors:
        found[of_prior(path)] = functools.partial(build_with_prior, TransitionPrior.load(path))
    return found


def builders_of(config: Config) -> dict[str, Build]:
    """Returns the methods of the config, and variants of dps and binomial_hmm (if included) with every single decay."""
    found = named_builders(config)
    if "binomial_hmm" in found:
        for decay in FIXED_DECAYS:
            found[f"binomial_hmm, decay {decay}"] = lambda source, decay=decay: predictors.binomial_hmm(
                group_ids=source.groups, features=source.features, group_size=source.group_size, decays=(decay,)
            )
    if "dps" in found:
        for decay in DPS_DECAYS:
            prior = resolve_prior("uniform", decay=decay)
            found[f"dps, decay {decay}"] = functools.partial(build_with_prior, prior)
    return found


def reliability_table(probs: np.ndarray, visits: Visits, is_counted: np.ndarray) -> dict[str, Any]:
    """Returns the table of `scores.reliability` for some visits, as lists."""
    table = scores.reliability(probs[is_counted], visits.successes[is_counted], counts=visits.counts[is_counted])
    return {key: np.asarray(values, np.float64).tolist() for key, values in table.items()}


def replay_source(config: Config, source: Source) -> dict[str, Any]:
    """Returns the scores of every method on one trace, and the lead of the first method over each other."""
    visits = source.visits
    number, gaps = visits_before(visits)
    third = visits.num_rounds / 3
    median_gap = np.median(gaps[number > 0]) if np.any(number > 0) else 0
    everything = np.ones(number.size, bool)
    splits = {
        "all": everything,
        "cold": number == 0,
        "revisited": number > 0,
        "seen at least twice": number >= 2,
        "short gap": (number > 0) & (gaps <= median_gap),
        "long gap": gaps > median_gap,
        "first third": visits.rounds < third,
        "last third": visits.rounds >= 2 * third,
    }
    distributions = {"oracle": oracle_probs(source)}
    for name, build in builders_of(config).items():
        of_size = lambda size, build=build: build(source._replace(group_size=size))
        distributions[name] = replay_own_counts(of_size, visits)
    losses = {name: scores.log_losses(probs, visits.successes) for name, probs in distributions.items()}
    rng = np.random.default_rng(0)
    ahead = {
        name: scores.bootstrap_by_prompt(loss - losses[config.names[0]], visits.ids, rng)
        for name, loss in losses.items()
        if name != config.names[0]
    }
    tables = {}
    for name in (*config.names, "oracle"):
        probs = distributions[name]
        tables[name] = reliability_table(probs, visits, everything)
        tables[name]["confusion"] = scores.confusion(probs, visits.successes, visits.counts).tolist()
        tables[name]["seen at least twice"] = reliability_table(probs, visits, splits["seen at least twice"])
    return {
        # The many variants with single decays are scored on all visits only.
        "scores": {
            name: {split: score(probs, visits, splits[split]) for split in (splits if name in tables else ["all"])}
            for name, probs in distributions.items()
        },
        "log_loss_minus_first": {name: list(values) for name, values in ahead.items()},
        "reliability": tables,
    }


def score_panel(config: Config, panel: Panel) -> dict[str, Any]:
    """Returns the scores of every method on the sweeps of a panel, predicted from earlier training visits."""
    features = panel.features.astype(np.float64)
    source = Source(_NO_VISITS, panel.groups, features, None, panel.group_size)
    num_before = np.cumsum(panel.trained >= 0, axis=0) - (panel.trained >= 0)
    found: dict[str, Any] = {}
    first: dict[str, np.ndarray] = {}
    for name, build in builders_of(config).items():
        replayed = replay_panel(build(source), panel)
        is_asked = replayed.ids >= 0
        number = np.take_along_axis(num_before, np.maximum(replayed.ids, 0), axis=1)
        splits = {"all": True, "trained": number > 0, "seen at least twice": number >= 2, "never": number == 0}
        found[name] = {}
        for split, is_of_split in splits.items():
            rows = is_asked & is_of_split
            if not rows.any():
                continue
            probs, successes = replayed.probs[rows], replayed.successes[rows]
            losses = scores.log_losses(probs, successes)
            behind = scores.bootstrap_by_prompt(
                losses - first.setdefault(split, losses), replayed.ids[rows], np.random.default_rng(0)
            )
            found[name][split] = {
                "groups": int(rows.sum()),
                "log_loss": float(losses.mean()),
                "log_loss_minus_first": list(behind),
                "brier": float(scores.brier_scores(probs, successes).mean()),
                "reliability_error": scores.reliability_error(probs, successes),
                "auc": scores.auc(probs, successes),
            }
    return found


# The oracle, as a pair: choose(best prompts, batch_size) -> ids, and tell(ids, successes) -> None.
_by_truth = (lambda best, batch_size: best, lambda ids, successes: None)


def _by_selector(method: str, learners: traces.Learners, seed: int, options: dict[str, Any]) -> tuple[Any, Any]:
    """Returns a selector as the pair of functions `choose` and `tell`, as in `_by_truth`."""
    known = selectors.option_names(method)
    options |= {name: getattr(learners, name) for name in ("groups", "features") if name in known}
    selector = selectors.build(method, learners.num_prompts, **options)
    key = jax.random.key(seed)
    select, observe = jax.jit(selector.select, static_argnums=2), jax.jit(selector.observe, donate_argnums=0)
    held = {"state": jax.jit(selector.init)(key), "round": 0}

    def choose(best: np.ndarray, batch_size: int) -> np.ndarray:
        del best
        held["round"] += 1
        return np.asarray(select(held["state"], jax.random.fold_in(key, held["round"]), batch_size)[0], np.int64)

    def tell(ids: np.ndarray, successes: np.ndarray) -> None:
        counts = jnp.full(ids.size, 8)
        held["state"] = observe(held["state"], jnp.asarray(ids), jnp.asarray(successes), counts)

    return choose, tell


def close_loop(config: Config, regime: str, seed: int, method: str, **options: Any) -> dict[str, float]:
    """Returns the results of one closed loop, in which a selector chooses the prompts that learners are trained on."""
    num_prompts = config.prompts_of(regime)
    learners = traces.Learners(np.random.default_rng(seed), regime, num_prompts=num_prompts)
    choose, tell = _by_truth if method == "oracle" else _by_selector(method, learners, seed, options)
    last = np.full(num_prompts, -1)
    num_informative, regret = 0, []
    for index in range(config.num_rounds):
        rates = learners.rates()
        chances = 1 - rates**8 - (1 - rates) ** 8
        best = np.argpartition(-chances, config.batch_size)[: config.batch_size]
        ids = choose(best, config.batch_size)
        successes = learners.rollout(ids, 8)
        num_informative += int(np.sum((successes > 0) & (successes < 8)))
        regret.append(float(chances[best].mean() - chances[ids].mean()))
        tell(ids, successes)
        learners.step(ids, successes, 8)
        last[ids] = index
    return {
        "effective_sample_ratio": num_informative / (config.num_rounds * config.batch_size),
        "regret": float(np.mean(regret)),
        "coverage": float(np.mean(last >= 0)),
        "longest_wait": int(config.num_rounds - 1 - last.min()),
        "final_success_rate": float(learners.rates().mean()),
    }


def loops() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the selectors of the closed loops: label -> (method, its options)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {method: (method, {}) for method in (*CLOSED_LOOP, "oracle")}
    found["binomial_hmm, greedy"] = ("binomial_hmm", {"temperature": 0.0, "optimism": 0.0})
    return found | {f"dps, decay {decay}": ("dps", {"decay": decay}) for decay in DPS_DECAYS}


def state_bytes(build: Build) -> int:
    """Returns the bytes per prompt of the state of a predictor."""

    def size(num_prompts: int) -> int:
        source = Source(_NO_VISITS, np.arange(num_prompts) % 6, None, None, 8)
        state = jax.eval_shape(lambda: build(source).init(num_prompts))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    return (size(2000) - size(1000)) // 1000


def main(config: Config) -> dict[str, Any]:
    """Replays and scores, writes the results, and returns them."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    folder = config.folder
    sources = sources_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    options = json.loads(json.dumps(dataclasses.asdict(config) | {"out_dir": folder.name}, default=str))
    options["methods"] = list(config.names)
    options["priors"] = [f"{path} {_files.checksum(path)}" for path in config.priors]
    of_all = (
        "columns",
        "threshold",
        "regimes",
        "runs",
        "panels",
        "traces",
        "out_dir",
        "closed_loop",
        "num_seeds",
        "num_loop_seeds",
    )
    parts = _parts.Parts(folder / "parts", {key: value for key, value in options.items() if key not in of_all})
    results: dict[str, Any] = {
        "config": options,
        "machine": _machine.describe_machine(),
        "state_bytes": {name: state_bytes(build) for name, build in named_builders(config).items()},
        "sources": {},
        "panels": {},
        "closed_loop": {},
    }
    for name, jobs in sources.items():
        num_variants = len(builders_of(config)) - len(config.names)
        variants = f" and {num_variants} variants with single decays" if num_variants else ""
        console.print(f"{name}: replaying with {len(config.names)} predictors{variants}", highlight=False)
        found = [
            parts.kept(f"{name}-{seed}", job.content, lambda job=job: replay_source(config, job.make()))
            for seed, job in enumerate(jobs)
        ]
        results["sources"][name] = found
        means = {
            method: round(_replay_report.mean_of(found, method, "all", "log_loss")[0], 4)
            for method in (*config.names, "oracle")
        }
        console.print(f"{name}: {means}", highlight=False)
    for name in config.panels or ():
        path = PANELS / f"{name}.npz"
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found = parts.kept(f"panel-{name}", content, lambda path=path: score_panel(config, read_panel(path)))
        results["panels"][name] = found
        losses = {method: round(splits["all"]["log_loss"], 4) for method, splits in found.items()}
        console.print(f"panel {name}: {losses}", highlight=False)
    if config.closed_loop:
        for regime in config.regimes or ():
            found = {}
            for label, (method, changes) in loops().items():
                make = lambda seed, regime=regime, method=method, changes=changes: close_loop(
                    config, regime, seed, method, **changes
                )
                found[label] = [
                    parts.kept(
                        f"loop-{regime}-{label}-{index}",
                        "",
                        lambda make=make, index=index: make(config.first_seed + index),
                    )
                    for index in range(config.num_loop_seeds)
                ]
            results["closed_loop"][regime] = found
            means = {
                m: round(float(np.mean([run["effective_sample_ratio"] for run in runs])), 3)
                for m, runs in found.items()
            }
            console.print(f"closed loop, {regime}: {means}", highlight=False)
    # Rounded to five decimals to keep the file small; tables show three.
    results = json.loads(_json.dumps(results), parse_float=lambda number: round(float(number), 5))
    _json.write(folder / "results.json", results)
    table = _replay_report.to_markdown(results)
    _files.write_atomically(folder / "table.md", table)
    _replay_report.plot(results, folder)
    console.print(table, markup=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    try:
        chosen = _cli.cli(Config, description=__doc__, may_import=True)
        # All seeds run the same programs, so compiled programs are cached.
        jax.config.update("jax_compilation_cache_dir", str(chosen.folder / "programs"))
        main(chosen)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
