"""What every task promises: problems by counters, splits that share nothing, a scorer equal to the plain verifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dps_jax import models, tasks
from dps_jax.tasks import _generation

NAMES = sorted(tasks.TASKS)
SPLITS = ("train", "test", "warmup")
NUM_ADVERSARIAL = 100_000


@pytest.fixture(scope="module", params=NAMES)
def task(request):
    return tasks.build(request.param, format_reward=0.25)


def canonical(task, problems):
    """Returns what identifies each problem up to the order of its numbers, read from its prompt."""
    found = []
    for row in problems.prompts:
        left, right = task.decode(row).split(">")
        if task.name in ("steps", "geometry"):  # the order of operations matters, and rasters have no other
            found.append((left, right))
            continue
        joint = "+" if "+" in left else None
        found.append((tuple(sorted(int("".join(part.split())) for part in left.split(joint))), right.strip()))
    return found


def adversarial(task, count, seed=0):
    """Returns facts and answers: right ones, and right ones broken in every way we could think of."""
    rng = np.random.default_rng(seed)
    indices = np.arange(count)
    facts = task.make_problems(0, "train", indices).facts
    answers = task.make_solutions(0, "train", indices).copy()
    ends = np.argmax(answers == task.end_id, axis=1)
    kind = rng.integers(0, 12, count)
    place, other = (rng.integers(0, ends) for _ in range(2))
    random = rng.integers(0, len(task.vocabulary), answers.shape)
    for row in range(count):
        answer, end = answers[row], ends[row]
        match kind[row]:
            case 1:  # one wrong token, of whatever kind
                answer[place[row]] = random[row, 0]
            case 2:  # a token off by one: a wrong result, digit, carry or operator
                answer[place[row]] += rng.choice([-1, 1])
            case 3:  # a token copied over another: a number used twice
                answer[place[row]] = answer[other[row]]
            case 4:  # two tokens swapped
                answer[[place[row], other[row]]] = answer[[other[row], place[row]]]
            case 5:  # no end
                answer[end] = random[row, 0]
            case 6:  # ended early, perhaps at once
                answer[place[row]] = task.end_id
            case 7:  # truncated
                answer[place[row] :] = task.pad_id
            case 8:  # tokens after the end, which do not count
                answer[end + 1 :] = random[row, end + 1 :]
            case 9:  # moved by one
                answer[1:] = answer[:-1].copy()
            case 10:  # nothing but noise
                answer[:] = random[row]
            case 11:  # the end of one answer behind the beginning of another
                answer[place[row] :] = answers[row - 1, place[row] :]
    return facts, answers, kind


def test_problems_are_a_function_of_seed_split_and_index(task):
    indices = np.array([5, 0, 5, 123_456_789])
    problems = task.make_problems(3, "train", indices)
    assert problems.prompts.dtype == problems.facts.dtype == problems.groups.dtype == np.int32
    assert problems.prompts.shape == (4, task.prompt_length)
    np.testing.assert_array_equal(problems.prompts[0], problems.prompts[2])
    for place, index in enumerate(indices):
        alone = task.make_problems(3, "train", [int(index)])
        for one, many in zip(alone, problems, strict=True):
            np.testing.assert_array_equal(one[0], many[place])
    many = np.arange(200)
    draws = [task.make_problems(seed, split, many).prompts for seed in (0, 1) for split in SPLITS]
    for first in range(len(draws)):
        for second in range(first):
            assert np.mean(np.any(draws[first] != draws[second], axis=1)) > 0.9


def test_prompts_are_padded_on_the_left_and_known_to_the_vocabulary(task):
    prompts = task.make_problems(0, "train", np.arange(2000)).prompts
    assert prompts.min() >= 0
    config = models.DecoderConfig(vocab_size=len(task.vocabulary), patch_bits=task.patch_bits)
    assert prompts.max() < config.num_prompt_ids
    is_pad = prompts == task.pad_id
    # Those of steps are filled up within, all to one length.
    assert np.any(is_pad) is np.bool_(task.name != "steps")
    assert not np.any(is_pad[:, 1:] & ~is_pad[:, :-1])
    assert not np.any(prompts == task.end_id)


def test_levels_come_with_their_weights(task):
    groups = task.make_problems(0, "train", np.arange(20_000)).groups
    counts = np.bincount(groups, minlength=len(task.group_names))
    weights = {
        "countdown": (0.2, 0.1, 0.2, 0.1, 0.4),
        "chain_sum": (0.1, 0.15, 0.15, 0.15, 0.25, 0.2),
        "geometry": (0.1, 0.15, 0.1, 0.15, 0.15, 0.15, 0.1, 0.1),
        "steps": (0.25,) * 4,
    }[task.name]
    assert scipy.stats.chisquare(counts, 20_000 * np.array(weights)).pvalue > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_problem_up_to_reordering_whatever_the_seed_and_the_mix(name):
    mixes = {
        "countdown": [((2, 20, 0.5), (3, 20, 0.5)), ((2, 20, 0.3), (3, 20, 0.3), (5, 50, 0.4))],
        "chain_sum": [((2, 1, 0.5), (3, 1, 0.5)), ((2, 1, 0.3), (3, 1, 0.3), (4, 4, 0.4))],
        "geometry": [((1, 3, 0.5), (6, 2, 0.5)), ((1, 3, 0.3), (6, 2, 0.3), (3, 6, 0.4))],
        "steps": [((1, 4, 0.5), (2, 1, 0.5)), ((1, 4, 0.3), (2, 1, 0.3), (5, 4, 0.4))],
    }[name]
    seen = {split: set() for split in SPLITS}
    for seed, levels in enumerate(mixes):
        task = tasks.build(name, levels=levels)
        for split in SPLITS:
            seen[split] |= set(canonical(task, task.make_problems(seed, split, np.arange(4000))))
    assert all(len(found) > 15 for found in seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["warmup"]
    assert not seen["test"] & seen["warmup"]


def test_solutions_are_right(task):
    indices = np.arange(5000)
    for split in SPLITS:
        problems, solutions = task.make_problems(1, split, indices), task.make_solutions(1, split, indices)
        assert solutions.shape == (5000, task.completion_length)
        score = jax.jit(task.score)(problems.facts, solutions)
        assert np.all(score.is_correct)
        assert np.all(score.rewards == 1)
        assert all(task.verify(*row) for row in zip(problems.facts[:200], solutions[:200], strict=True))
        # Behind the end there is nothing.
        is_after = np.cumsum(solutions == task.end_id, axis=1) - (solutions == task.end_id) > 0
        assert np.all((solutions == task.pad_id) == is_after)


def test_scores_equal_the_verifier_on_adversarial_answers(task):
    facts, answers, kind = adversarial(task, NUM_ADVERSARIAL)
    found = np.asarray(jax.jit(task.score)(facts, answers).is_correct)
    expected = np.array([task.verify(*row) for row in zip(facts.tolist(), answers.tolist(), strict=True)])
    np.testing.assert_array_equal(found, expected)
    # The answers test something: right and wrong ones of every kind that allows both.
    assert np.all(found[(kind == 0) | (kind == 8)])
    assert not np.any(found[(kind == 7)])
    # Of the numbers in an answer of geometry only the last has to be right.
    is_any = task.name == "geometry"
    assert 0.001 < found[kind == 1].mean() < (0.6 if is_any else 0.2)
    assert 0.001 < found[kind == 3].mean() < (0.8 if is_any else 0.5)


def test_answers_without_length_or_form_are_wrong(task):
    facts = task.make_problems(0, "train", np.arange(50)).facts
    tokens = np.arange(len(task.vocabulary))
    answers = np.broadcast_to(tokens[:, None, None], (tokens.size, 1, task.completion_length))
    score = jax.jit(task.score)(facts, answers)
    assert score.is_correct.shape == (tokens.size, 50)
    assert not np.any(score.is_correct)
    assert not np.any(score.rewards)


def test_rewards_and_correctness_are_separate(task):
    indices = np.arange(300)
    problems = task.make_problems(0, "train", indices)
    others = task.make_solutions(1, "train", indices)
    same_length = np.argmax(others == task.end_id, axis=1) == np.argmax(
        task.make_solutions(0, "train", indices) == task.end_id, axis=1
    )
    score = jax.jit(task.score)(problems.facts, others)
    wrong = ~np.asarray(score.is_correct)
    assert np.sum(wrong & same_length) > 30
    np.testing.assert_array_equal(score.rewards[wrong & same_length], 0.25)
    # Of geometry every number is well-formed.
    np.testing.assert_array_equal(score.rewards[wrong & ~same_length], 0.25 * (task.name == "geometry"))


def test_scores_take_any_leading_axes(task):
    facts, answers, _ = adversarial(task, 24)
    score = jax.jit(task.score)
    flat = score(facts, answers)
    wide = score(facts.reshape(2, 3, 4, -1), answers.reshape(2, 3, 4, -1))
    np.testing.assert_array_equal(wide.is_correct.reshape(-1), flat.is_correct)
    one = jax.jit(jax.vmap(task.score))(jnp.asarray(facts), jnp.asarray(answers))
    np.testing.assert_array_equal(one.rewards, flat.rewards)
    grouped = score(facts[:, None], np.stack([answers, answers], axis=1))
    np.testing.assert_array_equal(grouped.is_correct, np.stack([flat.is_correct] * 2, axis=1))


def test_bad_requests_are_refused(task):
    with pytest.raises(ValueError, match=r"split: expected .*'train'.* got 'dev'"):
        task.make_problems(0, "dev", [0])
    with pytest.raises(ValueError, match=r"indices: expected numbers >= 0, got -2"):
        task.make_solutions(0, "test", [1, -2])
    with pytest.raises(ValueError, match=r"indices: expected whole numbers, got 0\.5"):
        task.make_problems(0, "test", [0.5])
    with pytest.raises(ValueError, match=r"seed: expected an integer"):
        task.make_problems(-1, "test", [0])
    with pytest.raises(ValueError, match=r"facts: expected shape \[\.\.\., \d+\], got \[2, 1\]"):
        task.score(np.zeros((2, 1), int), np.zeros((2, task.completion_length), int))
    with pytest.raises(ValueError, match=r"completions: expected shape \[\.\.\., \d+\] or longer, got \[1, 2\]"):
        task.score(task.make_problems(0, "test", [0]).facts, np.zeros((1, 2), int))
    with pytest.raises(ValueError, match=r"tokens: expected ids in \[0, \d+\), got 999"):
        task.decode([999])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, r"levels: expected one or more of"),
        ({"levels": ((1, 9, 1.0),)}, r"levels: expected .* to \d.* got \(1, 9, 1\.0\)"),
        ({"levels": ((2, 3, 0.0),)}, r"levels: expected .*weight > 0"),
        ({"levels": ((2, 3, 1.0), (2, 3, 2.0))}, r"levels: expected levels that differ"),
        ({"levels": ((2, 3),)}, r"levels: expected .* got \(2, 3\)"),
        ({"format_reward": 1.5}, r"format_reward: expected .*1\.5"),
        ({"colour": 1}, r"options of task .* got colour"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.build(name, **options)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"name: expected .*'countdown'.* got 'sudoku'"):
        tasks.build("sudoku")


def test_a_level_without_problems_is_an_error_with_its_name():
    task = tasks.build("countdown", levels=((2, 2, 1.0),), max_value=2)
    with pytest.raises(ValueError, match=r"levels: expected problems for split 'test'.* at level \(2, 2\)"):
        task.make_problems(0, "test", np.arange(100))


def test_streams_look_random():
    stream = _generation.streams(0, "train", np.arange(50_000))
    counts = np.bincount(stream.integers(3, 10), minlength=10)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert scipy.stats.kstest(stream.floats(4), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(stream.floats(1), stream.floats(2))[0, 1]) < 0.02
    assert abs(np.corrcoef(stream.floats(1)[1:], stream.floats(1)[:-1])[0, 1]) < 0.02
