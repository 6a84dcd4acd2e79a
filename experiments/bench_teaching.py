"""Measures the held-out accuracy of a simulated policy for different selection methods.

The policy is a table of softmaxes over the answers to facts, which the prompts share. A method is a selector with
options, such as "dps:decay=0.5,temperature=1", or an oracle that uses the true success rates. The options `groups` and
`features` (without a value) pass the levels and features of the prompts to the selector, and `pool_factor` overrides
--pool-factor for this method. For a given seed, all methods have the same initial policy, wrong references and pools,
so differences are paired over seeds. Finished parts are kept in OUT_DIR/parts, so that an interrupted run can continue.
Writes results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _machine
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy import stats

from dps_jax import _checks, _cli, _files, _json, selectors
from dps_jax.selectors._option_text import literal
from dps_jax.traces import _oracles, _shared_facts, _teaching

_SWITCHES = ("groups", "features")
# This option belongs to the rounds, not to the selector.
_POOL = "pool_factor"
# Number of rounds between two points of a curve.
_CURVE_STEP = 8

# Methods that are compared by default, in addition to the oracles; see `parse_method`.
METHODS = (
    "uniform",
    "dps",
    "dps:decay=0.5",
    "mopps",
    "queue",
    "arcsine",
    "history",
    "binomial_hmm",
    "binomial_hmm:groups,features",
    "instructive:pool_factor=32",
    "instructive:groups,pool_factor=32",
    "instructive:groups,features,pool_factor=32",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The methods, mixes and sizes to compare."""

    methods: tuple[str, ...] = (*METHODS, *_oracles.ORACLES)
    """Selection methods: names of selectors with options, such as
    "binomial_hmm:temperature=1,value=informative,groups", and names of oracles."""
    mixes: tuple[str, ...] = tuple(_shared_facts.MIXES)
    """Mixes of prompts: some of "lean", "lean_by_level", "typical" and "rich"."""
    num_prompts: tuple[int, ...] = (2400,)
    """Sizes of the training set, N."""
    reference: str = "dps"
    """Method that the others are compared with; ignored if it is not among --methods."""
    num_seeds: int = 10
    """Number of runs of every method, at least 2; they are compiled as one program."""
    first_seed: int = 0
    """First of the consecutive seeds."""
    num_rounds: int = 160
    """Number of rounds of training."""
    batch_size: int = 32
    """Number of prompts per round, B."""
    group_size: int = 8
    """Number of completions per prompt, G."""
    pool_factor: int = 8
    """Number of candidates per pick: a round selects from a random pool of this many times B prompts; 0 selects from
    all prompts."""
    learning_rate: float = _teaching.LEARNING_RATE
    """Learning rate of Adam."""
    max_norm: float | None = None
    """Norm that gradients are clipped to; None does not clip."""
    problem_seed: int = 0
    """Random seed of the facts, levels and features of the prompts."""
    out_dir: Path = Path("runs/bench_teaching")
    """Folder of the results. Finished parts in it are reused; delete them if the code has changed."""

    def __post_init__(self):
        for method in self.methods:
            parse_method(method)
        for mix in self.mixes:
            _checks.check_choice("mixes", mix, _shared_facts.MIXES)
        _checks.check_int("num_seeds", self.num_seeds, at_least=2)
        for size in self.num_prompts:
            _checks.check_int("num_prompts", size, at_least=self.batch_size)


def _split(text: str) -> list[str]:
    """Returns the parts of a text between commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def parse_method(text: str) -> _oracles.Oracle | tuple[str, dict[str, Any]]:
    """Returns an oracle, or the name of a selector and its options; the options `groups` and `features` are True.

    Args:
      text: name in `ORACLES`, or "selector:option=value,option=value,groups,features".

    Raises:
      ValueError: for an unknown selector or option; the message lists the known ones.
    """
    if text in _oracles.ORACLES:
        return _oracles.ORACLES[text]
    name, _, rest = text.partition(":")
    _checks.check_choice("methods", name, [*selectors.SELECTORS, *_oracles.ORACLES])
    if name in _oracles.ORACLES:
        raise ValueError(f"methods: expected no options of the oracle {name!r}, got {rest!r}")
    options: dict[str, Any] = {}
    for part in _split(rest):
        option, is_set, value = part.partition("=")
        if not is_set and option not in _SWITCHES:
            raise ValueError(f"methods: expected option=value, groups or features in {text!r}, got {part!r}")
        options[option] = literal(value) if is_set else True
    known = (*selectors.option_names(name), _POOL)
    _checks.check_options(f"options of method {name!r}", options, known)
    return name, options


def build_method(text: str) -> _teaching.MakeSelector | _oracles.Oracle:
    """Returns the method in the form that `_teaching.simulator` accepts."""
    parsed = parse_method(text)
    if isinstance(parsed, _oracles.Oracle):
        return parsed
    name, options = parsed

    def make(problems: _shared_facts.Problems) -> Any:
        given = {key: getattr(problems, key) for key in _SWITCHES if options.get(key) is True}
        own = {key: value for key, value in options.items() if key != _POOL}
        return selectors.build(name, problems.num_prompts, **own | given)

    return make


def _sizes(config: Config, method: str) -> dict[str, Any]:
    """Returns the options of `_teaching.simulator`: those that all methods share, and the pool factor of the method."""
    names = ("num_rounds", "batch_size", "group_size", _POOL, "max_norm", "problem_seed")
    sizes = {name: getattr(config, name) for name in names}
    parsed = parse_method(method)
    if not isinstance(parsed, _oracles.Oracle) and _POOL in parsed[1]:
        sizes[_POOL] = parsed[1][_POOL]
    return sizes


def measure(config: Config, mix: str, num_prompts: int, method: str) -> dict[str, Any]:
    """Returns the results of one method, as lists over seeds."""
    simulate = _teaching.simulator(build_method(method), mix, num_prompts=num_prompts, **_sizes(config, method))
    seeds = jnp.arange(config.first_seed, config.first_seed + config.num_seeds)
    rate = jnp.float32(config.learning_rate)
    started = time.perf_counter()
    program = jax.jit(jax.vmap(simulate, in_axes=(0, None))).lower(seeds, rate).compile()
    compiled = time.perf_counter()
    record = jax.device_get(program(seeds, rate))
    rounded = lambda values: np.round(np.asarray(values, np.float64), 5).tolist()
    return {
        "area": rounded(_teaching.area(record.accuracy)),
        "final_accuracy": rounded(record.accuracy[:, -1]),
        "curve": rounded(record.accuracy[:, ::_CURVE_STEP]),
        "effective_sample_ratio": rounded(record.effective_sample_ratio.mean(axis=1)),
        "pick_rate": rounded(record.pick_rate.mean(axis=1)),
        "pool_informative": rounded(record.pool_informative.mean(axis=1)),
        "coverage": rounded(_teaching.coverage(record.ids, num_prompts)[:, -1]),
        "compile_s": round(compiled - started, 2),
        "run_s": round(time.perf_counter() - compiled, 2),
    }


def part_path(config: Config, mix: str, num_prompts: int, method: str) -> Path:
    """Returns the file for the results of one method; its name contains a digest of all settings."""
    settings = {
        "mix": dataclasses.asdict(_shared_facts.MIXES[mix]),
        "method": method if method in _oracles.ORACLES else parse_method(method),
        "seeds": [config.first_seed, config.num_seeds],
        "learning_rate": config.learning_rate,
        **_sizes(config, method),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return config.out_dir / "parts" / f"{mix}-{num_prompts}-{method.partition(':')[0]}-{digest}.json"


def difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of the paired differences and its 95 % t-interval."""
    gaps = np.subtract(values, reference)
    half = stats.t.ppf(0.975, gaps.size - 1) * gaps.std(ddof=1) / np.sqrt(gaps.size)
    return {"mean": float(gaps.mean()), "interval": [float(gaps.mean() - half), float(gaps.mean() + half)]}


def to_markdown(results: dict[str, Any]) -> str:
    """Returns one table for each mix and size."""
    config, lines = results["config"], []
    for place, found in results["found"].items():
        lines += [
            f"**{place} prompts**",
            "",
            f"| method | area | minus {config['reference']} | final accuracy | effective sample ratio | rate of picks "
            "| distinct | informative in pool | compile s | run s |",
            "|---|" + "---:|" * 9,
        ]
        for method, result in found.items():
            area = np.array(result["area"])
            mean = lambda name, result=result: f"{np.mean(result[name]):.3f}"
            gap = result.get("minus_reference")
            cells = [
                f"{area.mean():.3f} ± {area.std(ddof=1) / np.sqrt(area.size):.3f}",
                "" if gap is None else f"{gap['mean']:+.3f} ({gap['interval'][0]:+.3f} to {gap['interval'][1]:+.3f})",
                *(mean(name) for name in ("final_accuracy", "effective_sample_ratio", "pick_rate")),
                f"{np.mean(result['coverage']):.0%}",
                mean("pool_informative"),
                f"{result['compile_s']:.1f}",
                f"{result['run_s']:.1f}",
            ]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        f"{config['num_seeds']} seeds, {config['num_rounds']} rounds of {config['batch_size']} prompts with "
        f"{config['group_size']} completions each, chosen from {config['pool_factor']} times as many candidates unless "
        "the method has its own pool_factor. All columns but the last two are means over seeds, ± the standard error; "
        "brackets contain 95 % t-intervals of paired differences. Area: held-out accuracy, mean over rounds. Rate of "
        "picks: mean success rate of the picks. Distinct: share of the training prompts that were ever picked.",
    ]
    return "\n".join(lines) + "\n"


def main(config: Config) -> dict[str, Any]:
    """Measures the missing parts, writes results.json and table.md, and returns the results."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    (config.out_dir / "parts").mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        total = len(config.mixes) * len(config.num_prompts) * len(config.methods)
        bar = progress.add_task("methods", total=total)
        for mix in config.mixes:
            for num_prompts in config.num_prompts:
                place = found.setdefault(f"{mix}, {num_prompts:,}", {})
                for method in config.methods:
                    progress.update(bar, description=f"{mix}, {num_prompts:,}: {method}")
                    path = part_path(config, mix, num_prompts, method)
                    if not path.exists():
                        result = measure(config, mix, num_prompts, method)
                        _files.write_atomically(path, json.dumps(result) + "\n")
                    place[method] = json.loads(path.read_text(encoding="utf-8"))
                    progress.advance(bar)
    for place in found.values():
        if config.reference in place:
            reference = place[config.reference]["area"]
            for method, result in place.items():
                if method != config.reference:
                    result["minus_reference"] = difference(result["area"], reference)
    options = json.loads(json.dumps(dataclasses.asdict(config) | {"out_dir": config.out_dir.name}, default=str))
    results = {"config": options, "machine": _machine.describe_machine(), "found": found}
    _json.write(config.out_dir / "results.json", results, indent=2)
    table = to_markdown(results)
    _files.write_atomically(config.out_dir / "table.md", table)
    console.print(table, markup=False, soft_wrap=True)
    console.print(f"wrote {config.out_dir}")
    return results


if __name__ == "__main__":
    main(_cli.cli(Config, description=__doc__))
