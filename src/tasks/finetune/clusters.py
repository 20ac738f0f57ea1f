"""Groups among images that nobody named: k-means on their mean regions."""

import numpy as np
import torch
from torch import Tensor

from adaptive.policies import masked_mean
from vqadata.dataset import VqaDataset

IMAGES = 10_000  # a sample of so many shows the groups of any data set
TRIES, ROUNDS = 5, 100


def mean_regions(dataset: VqaDataset) -> Tensor:
    """The mean feature vector (N, D) of the regions of a data set's images, or of `IMAGES` of them."""
    used = np.unique(dataset.places, axis=0)
    places = used[np.unique(np.linspace(0, len(used) - 1, IMAGES, dtype=int))]
    batches = (dataset.stores.read(batch) for batch in np.array_split(places, -(-len(places) // 256)))
    means = [masked_mean(torch.from_numpy(b.features), torch.from_numpy(b.mask)) for b in batches]
    return torch.cat(means)


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """Euclidean distances (N, K) of points (N, D) to centres (K, D), in which no other point has a part.

    As a matrix product, which is faster, their last digits would depend on the batch.
    """
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")


def k_means(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """Centres (count, D) of points (N, D), N >= count: the best of some starts of Lloyd's algorithm.

    Each start draws its centres from the points, later ones with a probability that grows with the squared
    distance to those before (k-means++, Arthur and Vassilvitskii 2007). The seed determines them.
    """
    exact = points.double()
    generator = torch.Generator().manual_seed(seed)
    tries = [_lloyd(exact, _spread(exact, count, generator)) for _ in range(TRIES)]
    spread = (exact - exact.mean(0)).square().sum().item() or 1.0

    def within(centres: Tensor) -> float:
        """The share of the spread within groups; starts that end alike must not differ in its last digits."""
        return round(distances(exact, centres).min(1).values.square().sum().item() / spread, 9)

    return min(tries, key=within).to(points.dtype)


def _spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    while len(chosen) < count:
        away = distances(points, points[chosen]).min(1).values.square()
        away[chosen] = 0.0
        weights = away if away.any() else torch.ones_like(away)  # fewer different points than centres
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return points[chosen].clone()


def _lloyd(points: Tensor, centres: Tensor) -> Tensor:
    """Move each centre to the mean of the points that are nearest to it, until none moves."""
    for _ in range(ROUNDS):
        nearest = distances(points, centres).argmin(1)
        members = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        moved = torch.where(members[:, None] > 0, sums / members.clamp_min(1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
