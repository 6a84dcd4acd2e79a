"""Sampling in stages: the completions of `sample`, with rows that leave when they have ended."""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from dps_jax import models
from dps_jax.models import _staged
from tests.models import cases

PAD, END = cases.PAD, cases.END
LENGTHS, WIDTH = [5, 2, 4, 1], 5


def sampler(model, **options):
    graphdef, params = nnx.split(model)
    options = {"group_size": 4, "completion_length": 150, "pad_id": PAD, "num_tokens": 13, "end_ids": [END]} | options
    return functools.partial(models.staged_sampler(functools.partial(nnx.merge, graphdef), **options), params)


def of_one_program(model, prompts, keys, **options):
    graphdef, params = nnx.split(model)
    run = lambda params: models.sample(nnx.merge(graphdef, params), prompts, keys, pad_id=PAD, **options)
    return jax.device_get(jax.jit(run)(params))


@pytest.fixture(scope="module")
def both():
    """A model, and completions of one program and in stages; a completion ends with probability .03 or so per token."""
    model, prompts, keys = (
        cases.decoder(scale=0.1),
        cases.prompts(LENGTHS, WIDTH),
        jax.random.split(jax.random.key(0), 4),
    )
    options = {"group_size": 4, "completion_length": 150, "end_ids": [END]}
    expected = of_one_program(model, prompts, keys, **options)
    return expected, sampler(model)(prompts, np.asarray(prompts != PAD), keys)


def test_stages_sample_what_one_program_samples(both):
    expected, found = both
    lengths = expected.mask.sum(axis=-1)
    assert lengths.min() < 10
    assert lengths.max() > 40
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)


@pytest.mark.parametrize("options", [{"end_ids": []}, {"temperature": 0.0, "top_k": 3}, {"completion_length": 1}])
def test_options_are_those_of_one_program(options):
    model, prompts, keys = (
        cases.decoder(scale=0.1),
        cases.prompts(LENGTHS, WIDTH),
        jax.random.split(jax.random.key(1), 4),
    )
    options = {"group_size": 4, "completion_length": 70, "end_ids": [END]} | options
    expected = of_one_program(model, prompts, keys, **options)
    found = sampler(model, **options)(prompts, np.asarray(prompts != PAD), keys)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_every_open_row_has_one_place():
    rng = np.random.default_rng(0)
    num_placed = 0
    for share in (0.9, 0.6, 0.4, 0.2, 0.05):
        is_open = rng.random((8, 8)) < share
        placing = _staged.place(is_open, 64, 64, 20)
        if placing is None:
            assert share > 0.75
            continue
        num_placed += 1
        slots, members = placing
        placed = [(slot, row) for slot, rows in zip(slots, members, strict=True) for row in rows if row >= 0]
        assert sorted(placed) == sorted(zip(*np.nonzero(is_open), strict=True))
        assert members.size <= 0.8 * is_open.size
    assert num_placed >= 3
    # Where prompts are long, they are not read more often to have fewer rows.
    is_open = np.eye(8, dtype=bool) | (np.arange(8) < 3)
    assert _staged.place(is_open, 64, 64, 20)[1].size == 32
    assert _staged.place(is_open, 64, 64, 100_000) is None


class Counted(NamedTuple):
    """In place of a loop: the step, and how long each row will be, 0 for none."""

    step: int
    lengths: np.ndarray

    @property
    def is_open(self):
        return self.lengths > self.step

    @property
    def written(self):
        return ()


def test_what_is_computed_is_at_most_half_as_much_again_as_what_counts(monkeypatch):
    """Lengths are geometric with mean T / 4: rows and tokens of every stage are counted, and no model runs."""
    rng, length = np.random.default_rng(1), 512
    lengths = np.minimum(rng.geometric(4 / length, (32, 8)), length)
    computed = []

    def run(params, read, loop, until):
        computed.append(loop.lengths.size * max(0, min(until, loop.lengths.max()) - loop.step))
        return Counted(until, loop.lengths)

    def move(read, loop, slots, members):
        return read, Counted(loop.step, np.where(members >= 0, loop.lengths[slots[:, None], members], 0))

    programs = _staged._Programs(
        start=lambda *arrays: (None, Counted(0, lengths)), run=run, move=move, grow=lambda loop, room: loop
    )
    monkeypatch.setattr(_staged, "_store", lambda *arrays: None)
    plan = _staged._Plan(group_size=8, completion_length=length, pad_id=0)
    _staged._sample(plan, programs, None, np.zeros((32, 64), np.int32), None, None)
    assert lengths.sum() <= sum(computed) <= 1.5 * lengths.sum()


def test_caches_have_room_for_what_is_written_and_prompts_are_there_once():
    model, prompts = cases.decoder(), cases.prompts(LENGTHS, WIDTH)
    run = lambda prompts: models.sample(
        model, prompts, jax.random.key(0), group_size=4, completion_length=512, end_ids=[END], pad_id=PAD
    )
    program = str(jax.make_jaxpr(run)(prompts))
    # Of 2 heads with 8 dimensions: rows of 64, 128, 256 and 512 tokens, and prompts of 5.
    rooms = {int(room) for room in re.findall(r"f32\[4,4,2,(\d+),8\]", program)}
    assert rooms - {1, 2} == {64, 128, 256, 512}
    assert "f32[4,2,5,8]" in program
    assert "f32[4,4,2,5,8]" not in program
