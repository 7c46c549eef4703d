"""k-means: groups of similar points (Lloyd 1982), initialized as in Arthur and Vassilvitskii 2007.

Dims     T points   D width of a point   K clusters
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def find_clusters(
    points: Float[Tensor, "T D"],
    num_clusters: int,
    generator: torch.Generator,
    num_steps: int = 20,
) -> Float[Tensor, "{num_clusters} D"]:
    """Return the centers; with fewer distinct points than clusters, some clusters are empty.

    The first centers are points drawn one after another, each with a probability proportional to
    its squared distance from the nearest center so far. Then points are assigned to the nearest
    center, and centers moved to the mean of their points, until nothing changes or `num_steps`
    steps are over. An empty cluster keeps its center. Raises ValueError if there are no points.
    """
    if len(points) == 0:
        raise ValueError("there are no points to cluster")
    centers = _draw_centers(points, num_clusters, generator)
    for _ in range(num_steps):
        cluster = assign(points, centers)
        sizes = cluster.bincount(minlength=num_clusters)
        sums = torch.zeros_like(centers).index_add_(0, cluster, points)
        means = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centers)
        if torch.equal(means, centers):
            break
        centers = means
    return centers


def assign(points: Float[Tensor, "T D"], centers: Float[Tensor, "K D"]) -> Int[Tensor, " T"]:
    """Return the index of the nearest center of each point; of equal ones, the first."""
    return _squared_distances(points, centers).argmin(dim=1)


def _draw_centers(
    points: Float[Tensor, "T D"], num_clusters: int, generator: torch.Generator
) -> Float[Tensor, "K D"]:
    """Draw on the CPU, so that all devices agree."""
    first = int(torch.randint(len(points), (), generator=generator))
    chosen, distance = [first], torch.full((len(points),), torch.inf, dtype=torch.float64)
    for _ in range(num_clusters - 1):
        latest = _squared_distances(points, points[chosen[-1:]])[:, 0].cpu().double()
        distance = distance.minimum(latest.clamp(min=0))
        if not distance.any():
            distance = torch.ones_like(distance)
        chosen.append(int(distance.multinomial(1, generator=generator)))
    return points[chosen]


def _squared_distances(
    points: Float[Tensor, "T D"], centers: Float[Tensor, "K D"]
) -> Float[Tensor, "T K"]:
    return torch.cdist(points, centers).square()
