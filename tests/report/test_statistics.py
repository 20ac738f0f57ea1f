"""Intervals cover what they estimate as often as they say, and agree with formulas and with SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from report.statistics import (
    Interval,
    crossed_interval,
    paired_interval,
    seeds_interval,
    student_quantile,
)

EXPERIMENTS = 1000
COVERED = (0.93, 0.97)


def drawn_images(rng: np.random.Generator, count: int) -> np.ndarray:
    """The image (N,) of each question: two to eight about each of `count` images."""
    return np.repeat(np.arange(count), rng.integers(2, 9, count))


def coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def test_the_interval_over_images_covers_with_clustered_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores differ by -1, 0 or 1, and questions about one image lean the same way."""
    monkeypatch.setattr("report.statistics.RESAMPLES", 1000)
    rng = np.random.default_rng(1)
    over_images, over_questions = [], []
    for _ in range(EXPERIMENTS):
        images = drawn_images(rng, 120)
        lean = rng.beta(2.2, 2.0, 120)[images]
        changed = rng.random(len(images)) < 0.4
        differences = np.where(changed, np.where(rng.random(len(images)) < lean, 1.0, -1.0), 0.0)
        over_images.append(paired_interval(differences, images))
        over_questions.append(paired_interval(differences, np.arange(len(images))))
    truth = 0.4 * (2 * 2.2 / 4.2 - 1)
    assert COVERED[0] <= coverage(over_images, truth) <= COVERED[1]
    assert coverage(over_questions, truth) < COVERED[0]  # what questions taken for independent would give


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_image", "of_both"),
    [(3, 0.3, 1.0, 1.0), (6, 0.05, 1.0, 1.0), (6, 0.3, 0.1, 2.0), (4, 0.0, 0.0, 2.0)],
)
def test_the_interval_over_seeds_and_images_covers(
    seeds: int, of_seed: float, of_image: float, of_both: float
) -> None:
    """Whichever of the two, or their interaction, brings most of the variance."""
    rng = np.random.default_rng(2)
    intervals = []
    for _ in range(EXPERIMENTS):
        images = drawn_images(rng, 60)
        effects = of_both * rng.normal(size=(seeds, 60)) + of_image * rng.normal(size=60)
        differences = effects[:, images] + of_seed * rng.normal(size=(seeds, 1))
        differences += rng.normal(size=differences.shape) + 0.7
        intervals.append(crossed_interval(differences, images))
    # Where neither seeds nor images matter by themselves it is wider than it had to be, and says so.
    most = COVERED[1] if of_seed or of_image else 1.0
    assert COVERED[0] <= coverage(intervals, 0.7) <= most


@pytest.mark.parametrize("freedom", [1, 1.7, 2, 5, 29.3, 299, 4999, 1e6])
@pytest.mark.parametrize("level", [0.6, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(level: float, freedom: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=2e-5)


def test_the_interval_over_seeds_is_the_paired_t_interval_of_scipy() -> None:
    one, other = np.random.default_rng(3).normal(70, 1, (2, 6))
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = seeds_interval(one - other)
    assert found.mean == pytest.approx((one - other).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-4)


def test_the_bootstrap_is_that_of_scipy_where_every_image_has_one_question() -> None:
    differences = np.random.default_rng(4).normal(0.1, 1, 300)
    expected = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=20_000, rng=5)
    found = paired_interval(differences, np.arange(300))
    error = expected.standard_error
    assert found.error == pytest.approx(error, rel=0.05)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.15 * error)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.15 * error)


def test_the_bootstrap_draws_images_with_all_their_questions() -> None:
    """Of three images, all 27 draws are enumerated."""
    images = np.array(["b", "a", "a", "c", "a"])
    differences = np.array([1.0, 0.0, -1.0, 0.5, 1.0])
    groups = [differences[images == name] for name in "abc"]
    means = [np.concatenate(draw).mean() for draw in itertools.product(groups, repeat=3)]
    found = paired_interval(differences, images)
    assert found.mean == pytest.approx(0.3) and found.freedom == 2
    assert found.error == pytest.approx(np.std(means), rel=0.03)
    assert (found.low, found.high) == pytest.approx((min(means), max(means)))


def test_the_variance_of_seeds_and_images_is_that_of_the_two_way_analysis() -> None:
    """With equally many questions an image, from mean squares as textbooks have them."""
    rng = np.random.default_rng(6)
    seeds, images, each = 5, 30, 4
    cells = rng.normal(size=(seeds, images)) + rng.normal(size=images) + rng.normal(size=(seeds, 1))
    differences = np.repeat(cells, each, axis=1)
    mean = cells.mean()
    of_seeds = images * sum((row.mean() - mean) ** 2 for row in cells) / (seeds - 1)
    of_images = seeds * sum((column.mean() - mean) ** 2 for column in cells.T) / (images - 1)
    rest = sum(
        (cells[s, i] - cells[s].mean() - cells[:, i].mean() + mean) ** 2
        for s in range(seeds)
        for i in range(images)
    ) / ((seeds - 1) * (images - 1))
    squares = of_seeds, of_images, rest
    error = (of_seeds + of_images - rest) / (seeds * images)
    degrees = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    freedom = (of_seeds + of_images - rest) ** 2 / sum(
        s**2 / d for s, d in zip(squares, degrees, strict=True)
    )
    found = crossed_interval(differences, np.repeat(np.arange(images), each))
    assert found.error == pytest.approx(math.sqrt(error))
    assert found.freedom == pytest.approx(freedom)


def test_the_least_detectable_difference_is_found_in_four_of_five_cases() -> None:
    """By the noncentral t distribution."""
    for freedom in (5, 20, 300):
        interval = Interval(0.0, -1.0, 1.0, 0.5, freedom)
        shift = interval.least_detectable / interval.error
        found = 1 - stats.nct.cdf(stats.t.ppf(0.975, freedom), freedom, shift)
        assert found == pytest.approx(0.8, abs=0.02)


def test_the_same_questions_give_the_same_interval_and_equal_runs_none() -> None:
    images = np.repeat(np.arange(50), 4)
    differences = np.random.default_rng(7).normal(size=200)
    assert paired_interval(differences, images) == paired_interval(differences, images)
    assert paired_interval(differences, images) != paired_interval(differences, images, seed=1)
    none = np.zeros((3, 200))
    for interval in (paired_interval(none[0], images), crossed_interval(none, images)):
        assert (interval.mean, interval.low, interval.high) == (0, 0, 0) and interval.includes_zero


def test_one_image_or_one_seed_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        paired_interval(np.ones(5), np.zeros(5))
    with pytest.raises(ValueError, match="at least two"):
        seeds_interval(np.ones(1))
    with pytest.raises(ValueError, match="at least two"):
        crossed_interval(np.ones((1, 5)), np.arange(5))
