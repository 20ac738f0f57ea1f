"""How sure a difference between two ways of answering is, from questions that are not independent.

Questions about one image share what is hard about it, so images are drawn again and not questions; runs with
one seed share an initialisation and an order, so several seeds are a second sample beside that of the images.
Every difference is paired: the same questions, and the same seeds, answered in both ways. Intervals are not
corrected for how many of them a table shows.
"""

import math
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # how often an interval covers what it estimates
POWER = 0.8  # how often a difference that is the least detectable one is found
RESAMPLES = 5000
MOST_DRAWN = 1 << 22  # numbers in memory at a time
POINTS = 20_001  # of an integral; Student's quantiles are right to five digits with them
TAIL = 12  # standard deviations beyond which no probability is left


class Interval(NamedTuple):
    """A mean and where it may lie; all but `freedom` in the unit of what was averaged."""

    mean: float
    low: float
    high: float
    error: float  # standard error of the mean
    freedom: float  # degrees of freedom of that error

    @property
    def includes_zero(self) -> bool:
        """Whether the data do not tell which of the two is better."""
        return self.low <= 0 <= self.high

    @property
    def least_detectable(self) -> float:
        """The least true mean that comparisons with this error find in 80 % of all cases.

        Found is what has an interval without 0; (t_0.975 + t_0.8) standard errors, the usual approximation of
        the noncentral t distribution.
        """
        quantiles = (student_quantile(level, self.freedom) for level in (LEVEL, 2 * POWER - 1))
        return sum(quantiles) * self.error


def paired_interval(differences: np.ndarray, images: np.ndarray, seed: int = 0) -> Interval:
    """The mean difference over N questions, with the percentiles of a bootstrap over images.

    differences (N,): of the scores of each question. images (N,): what it is about, by name or number. The
    same `seed` draws the same images. ValueError for fewer than two images.
    """
    totals, sizes = _by_image(differences[None], images)
    count = len(sizes)
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    step = max(1, MOST_DRAWN // count)
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(count, size=(min(step, RESAMPLES - start), count), dtype=np.int32)
        means[start : start + step] = totals[0][drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(differences.mean()), float(low), float(high), float(means.std()), count - 1)


def seeds_interval(differences: np.ndarray) -> Interval:
    """The mean of S paired differences, one a seed, with Student's t: the paired t interval.

    It says how other seeds would come out on the same questions. ValueError for fewer than two seeds.
    """
    seeds = len(differences)
    if seeds < 2:
        raise ValueError("an interval over seeds needs at least two of them")
    return _student(differences.mean(), differences.var(ddof=1) / seeds, seeds - 1)


def crossed_interval(differences: np.ndarray, images: np.ndarray) -> Interval:
    """The mean of differences (S, N) of S seeds, for other seeds and other images.

    Seeds and images are both drawn at random, and every seed meets every image: a crossed two-way layout. The
    variance of the mean is that over images plus that over seeds minus that of their interaction, which both
    of them hold; Satterthwaite (1946) gives the degrees of freedom of such a sum. Neither part is allowed to
    vanish in the subtraction. ValueError for fewer than two seeds or images.
    """
    seeds, questions = differences.shape
    over_seeds = seeds_interval(differences.mean(1))
    totals, sizes = _by_image(differences, images)
    count = len(sizes)
    # Of each seed and image, the total that is left when the seed's mean is taken away; then the image's.
    left = totals - differences.mean(1, keepdims=True) * sizes
    scale = (seeds * questions) ** 2
    of_images = count / (count - 1) * (left.sum(0) ** 2).sum() / scale
    left = left - left.mean(0)
    of_both = seeds / (seeds - 1) * count / (count - 1) * (left**2).sum() / scale
    of_seeds = over_seeds.error**2
    variance = max(of_images + of_seeds - of_both, of_images, of_seeds)
    spread = of_seeds**2 / (seeds - 1) + of_images**2 / (count - 1)
    spread += of_both**2 / ((seeds - 1) * (count - 1))
    least = min(seeds, count) - 1
    freedom = max(variance**2 / spread, least) if spread else least
    return _student(over_seeds.mean, variance, freedom)


def student_quantile(level: float, freedom: float) -> float:
    """How far from 0 Student's t with so many degrees of freedom (1 or more) stays with this probability.

    With t = sqrt(freedom) tan(a), its density is proportional to cos(a) ** (freedom - 1).
    """
    angles = np.linspace(0, min(math.pi / 2, TAIL / math.sqrt(freedom)), POINTS)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(level * below[-1], below, angles))


def _by_image(differences: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Totals (S, I) of differences (S, N) by image, and the number of questions (I,) of each image."""
    names, places = np.unique(images, return_inverse=True)
    if len(names) < 2:
        raise ValueError("an interval over images needs questions about at least two of them")
    totals = [np.bincount(places, row, len(names)) for row in differences]
    return np.array(totals), np.bincount(places)


def _student(mean: float, variance: float, freedom: float) -> Interval:
    error = math.sqrt(variance)
    reach = student_quantile(LEVEL, freedom) * error
    return Interval(float(mean), float(mean - reach), float(mean + reach), error, freedom)
