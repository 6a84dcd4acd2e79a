"""Animates how beliefs about prompts move over rounds, and which prompts a selector picks.

    python experiments/animate_beliefs.py
    python experiments/animate_beliefs.py --method instructive --regime mixed

In every round, a selector chooses prompts of simulated learners, observes their outcomes, and predicts all prompts
again. Each prompt is a point: x is its predicted success rate, and y is the predicted probability that its next
completion group is informative (0 < m < G, where m of G completions are correct). The picks of the round are
highlighted, and are filled if the group was informative. A second panel shows the effective sample ratio (the share of
informative groups) so far, and that of uniform selection for the same learners. Points are jittered, so that prompts
with equal predictions remain visible. Writes beliefs.gif, beliefs.png (a strip of still pictures) and results.json.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import track

from dps_jax import PromptSelector, _checks, _json, selectors, traces, viz

_DPI = 100
_WIDTH, _HEIGHT = 7.0, 3.9
_INK, _GREY, _GRID = "#20262c", "#808890", "#d8dce0"
_ALL, _PICKED = viz.COLORS[0], viz.COLORS[1]
_NUM_COLORS, _NEARLY_WHITE = 64, 244
# Standard deviation of the random displacement of points.
_SPREAD = 0.007
_NUM_STILLS = 4
# Seconds for which the last picture is shown.
_HOLD_S = 1.5


@dataclasses.dataclass(frozen=True)
class Config:
    """The selection method and the simulated learners to animate."""

    method: str = "binomial_hmm"
    """Name of the selection method, one of dps_jax.selectors.SELECTORS. Methods that use prompt groups receive the
    groups of the learners."""
    regime: str = "hard"
    """Regime of the simulated learners: "mixed", "hard", "fast_drift", "forgetting", "grouped" or "cold"."""
    num_prompts: int = 2000
    """Number of prompts, N; each is drawn as a point."""
    num_rounds: int = 60
    """Number of rounds."""
    batch_size: int = 32
    """Number of prompts per round, B."""
    group_size: int = 8
    """Number of completions per prompt, G."""
    seed: int = 0
    """Random seed of the learners and of the selector."""
    seconds: float = 10.0
    """Length of the animation in seconds."""
    frames_per_round: int = 2
    """Number of frames per round; the file grows with it."""
    out_dir: Path = Path("runs/animate_beliefs")
    """Folder for beliefs.gif, beliefs.png and results.json."""

    def __post_init__(self):
        _checks.check_choice("method", self.method, selectors.SELECTORS)
        _checks.check_choice("regime", self.regime, traces.REGIMES)
        for name in ("num_prompts", "num_rounds", "batch_size", "frames_per_round"):
            _checks.check_int(name, getattr(self, name), at_least=1)
        _checks.check_int("batch_size", self.batch_size, at_least=1, at_most=self.num_prompts)
        _checks.check_int("group_size", self.group_size, at_least=2)
        _checks.check_int("seed", self.seed, at_least=0)
        _checks.check_number("seconds", self.seconds, above=_HOLD_S)


class Run(NamedTuple):
    """A run of a selector on simulated learners.

    Attributes:
      success_rate: success rate of every prompt predicted before each round, float32 [T, N].
      p_informative: probability of an informative group predicted before each round, float32 [T, N].
      picks: prompts of each round, int64 [T, B].
      is_informative: whether the completion group of each pick was informative, bool [T, B].
    """

    success_rate: np.ndarray
    p_informative: np.ndarray
    picks: np.ndarray
    is_informative: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Effective sample ratio of the rounds so far, [T]."""
        return np.cumsum(self.is_informative.mean(axis=1)) / np.arange(1, len(self.picks) + 1)


def simulate(config: Config, method: str) -> Run:
    """Returns the run of a method on the simulated learners."""
    learners = traces.Learners(np.random.default_rng(config.seed), config.regime, num_prompts=config.num_prompts)
    known = selectors.option_names(method)
    options: dict[str, Any] = {"group_size": config.group_size} if "group_size" in known else {}
    selector = PromptSelector(config.num_prompts, method, seed=config.seed, groups=learners.groups, **options)
    rounds = []
    for _ in track(range(config.num_rounds), description=f"{method}, rounds", transient=True):
        ids = selector.select(config.batch_size)
        predicted = selector.predict()
        successes = learners.rollout(ids, config.group_size)
        selector.observe(ids, successes, config.group_size)
        learners.step(ids, successes, config.group_size)
        is_informative = (successes > 0) & (successes < config.group_size)
        rounds.append((predicted["success_rate"], predicted["p_informative"], ids, is_informative))
    return Run(*(np.array(column) for column in zip(*rounds, strict=True)))


class Scene:
    """Points of all prompts and of the picks in one panel."""

    def __init__(self, axes: Axes, run: Run, group_size: int):
        """Draws the static parts of the panel.

        Args:
          axes: axes of the panel.
          run: run to show.
          group_size: number of completions per prompt, G.
        """
        self._run = run
        self._shift = _SPREAD * np.random.default_rng(0).standard_normal((2, run.success_rate.shape[1]))
        rates = np.linspace(0, 1, 101)
        arch = 1 - rates**group_size - (1 - rates) ** group_size
        axes.plot(rates, arch, color=_GREY, linewidth=1, linestyle=":")
        (self._all,) = axes.plot([], [], "o", color=_ALL, markersize=3.6, markeredgewidth=0, alpha=0.35)
        (self._missed,) = axes.plot([], [], "o", color="white", markersize=5.5, markeredgewidth=1.3)
        self._missed.set_markeredgecolor(_PICKED)
        (self._hit,) = axes.plot([], [], "o", color=_PICKED, markersize=6, markeredgewidth=0.6)
        self._hit.set_markeredgecolor("white")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.04, 1.08))
        _style(axes)

    def show(self, time: float) -> None:
        """Moves the points to a time in rounds; between two rounds, positions are interpolated."""
        run, index = self._run, int(time)
        # The speed is zero at both ends (smoothstep).
        part = (time - index) ** 2 * (3 - 2 * (time - index))
        after = min(index + 1, len(run.picks) - 1)
        between = lambda values: (1 - part) * values[index] + part * values[after]
        points = np.stack([between(run.success_rate), between(run.p_informative)]) + self._shift
        self._all.set_data(*points)
        is_hit = run.is_informative[index]
        self._hit.set_data(*points[:, run.picks[index][is_hit]])
        self._missed.set_data(*points[:, run.picks[index][~is_hit]])


def _style(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color=_GREY)


def _legend(figure: Figure) -> None:
    """Adds a legend for the points above the panels."""
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], "o", color=_ALL, alpha=0.5, markersize=4)[0],
        axes.plot([], [], "o", color=_PICKED, markersize=6)[0],
        axes.plot([], [], "o", color="white", markeredgecolor=_PICKED, markersize=5.5)[0],
    ]
    words = ["a prompt", "picked, partially solved", "picked, solved or unsolved"]
    figure.legend(handles, words, loc="outside upper center", ncols=3, fontsize=8.5, frameon=False)


def animated(config: Config, run: Run, uniform: Run) -> tuple[Figure, Iterator[None]]:
    """Returns a figure, and an iterator that changes it to the next picture of the animation."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.55, 1))
    scene = Scene(left, run, config.group_size)
    left.set_xlabel("predicted success rate", fontsize=9)
    left.set_ylabel(f"predicted P(0 < m < {config.group_size})", fontsize=9)
    lines, labels = [], []
    names = ("uniform", config.method)
    for name, color, width, height in zip(names, (_GREY, _PICKED), (1.6, 2.2), (0.86, 0.93), strict=True):
        lines.append(right.plot([], [], color=color, linewidth=width)[0])
        style = {"color": color, "fontsize": 9, "fontweight": "bold", "transform": right.transAxes}
        labels.append(right.text(0.04, height, name, **style))
    top = 1.35 * max(run.ratios[1:].max(initial=0.1), uniform.ratios[1:].max(initial=0.1))
    right.set(xlim=(0, config.num_rounds), ylim=(0, min(top, 1.05)))
    right.set_xlabel("round", fontsize=9)
    right.set_title("Effective sample ratio so far", loc="left", fontsize=9.5, fontweight="bold")
    _style(right)
    _legend(figure)

    def pictures() -> Iterator[None]:
        for frame in range(config.num_rounds * config.frames_per_round):
            time = frame / config.frames_per_round
            seen = int(time) + 1
            scene.show(time)
            left.set_title(f"Beliefs before round {seen}", loc="left", fontsize=9.5, fontweight="bold")
            for one, line, label, name in zip((uniform, run), lines, labels, names, strict=True):
                line.set_data(np.arange(1, seen + 1), one.ratios[:seen])
                label.set_text(f"{name} {one.ratios[seen - 1]:.0%}")
            yield

    return figure, pictures()


def strip(config: Config, run: Run) -> Figure:
    """Returns a figure with a few rounds of the animation side by side."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    rounds = np.unique(np.linspace(0, config.num_rounds - 1, _NUM_STILLS).round().astype(int))
    for axes, index in zip(figure.subplots(1, rounds.size, sharey=True, squeeze=False).flat, rounds, strict=True):
        Scene(axes, run, config.group_size).show(float(index))
        axes.set_title(f"Before round {index + 1}", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("predicted success rate", fontsize=9)
    figure.axes[0].set_ylabel(f"predicted P(0 < m < {config.group_size})", fontsize=9)
    _legend(figure)
    return figure


class _Writer(PillowWriter):
    """Writes a GIF with one palette for all pictures, so that unchanged areas take no space."""

    _frames: Sequence[Image.Image]

    def finish(self) -> None:
        """Writes the file."""
        frames = [frame.convert("RGB") for frame in self._frames]
        palette = frames[len(frames) // 2].quantize(_NUM_COLORS)
        # Pillow finds the nearest color only approximately, but the background must be white.
        colors = np.array(palette.getpalette()).reshape(-1, 3)
        colors[colors.min(axis=1) > _NEARLY_WHITE] = 255
        palette.putpalette(colors.ravel().tolist())
        first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        duration = [round(1000 / self.fps)] * len(others) + [round(1000 * _HOLD_S)]
        first.save(self.outfile, save_all=True, append_images=others, duration=duration, loop=0, optimize=True)


def main(config: Config) -> dict[str, Any]:
    """Writes the animation, a strip of still pictures and the results, and returns the results."""
    run, uniform = simulate(config, config.method), simulate(config, "uniform")
    config.out_dir.mkdir(parents=True, exist_ok=True)
    figure, pictures = animated(config, run, uniform)
    num_frames = config.num_rounds * config.frames_per_round
    path = config.out_dir / "beliefs.gif"
    writer = _Writer(fps=num_frames / (config.seconds - _HOLD_S))  # pyright: ignore[reportArgumentType]
    with writer.saving(figure, str(path), dpi=_DPI):
        for _ in track(pictures, description="pictures", total=num_frames, transient=True):
            writer.grab_frame()
    viz.save(strip(config, run), config.out_dir / "beliefs.png")
    results = {
        "config": {name: value for name, value in dataclasses.asdict(config).items() if name != "out_dir"},
        "effective_sample_ratio": {config.method: float(run.ratios[-1]), "uniform": float(uniform.ratios[-1])},
    }
    _json.write(config.out_dir / "results.json", results, indent=1)
    for name, ratio in results["effective_sample_ratio"].items():
        print(f"{name}: effective sample ratio {ratio:.2f} over {config.num_rounds} rounds")
    print(f"written: {path}, {path.stat().st_size / 1e6:.2f} MB")
    return results


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
