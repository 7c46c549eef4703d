"""k-means on planted groups of points."""

import pytest
import torch

from associative_transformer.analysis.clusters import assign, find_clusters


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(8))
def test_planted_groups_are_found(seed: int) -> None:
    centers = 10 * torch.eye(5)[:4]
    group = torch.arange(4).repeat_interleave(torch.tensor([3, 40, 7, 50]))
    points = centers[group] + 0.1 * torch.randn(100, 5)
    found = find_clusters(points, 4, seeded(seed))
    cluster = assign(points, found)
    names = [set(cluster[group == i].tolist()) for i in range(4)]
    assert sorted(len(name) for name in names) == [1] * 4 and len(set.union(*names)) == 4
    for i in range(4):
        mean = points[group == i].mean(dim=0)
        assert torch.allclose(found[cluster[group == i][0]], mean, atol=1e-4)


def test_each_point_belongs_to_the_nearest_center_and_each_center_is_the_mean_of_its_points() -> (
    None
):
    points = torch.randn(200, 3).double()
    centers = find_clusters(points, 7, seeded(), num_steps=1_000)
    cluster = assign(points, centers)
    for point, number in zip(points, cluster.tolist(), strict=True):
        distances = [float(((point - center) ** 2).sum()) for center in centers]
        assert number == min(range(7), key=lambda i: distances[i])
    for number in range(7):
        assert torch.allclose(points[cluster == number].mean(dim=0), centers[number])


def test_more_steps_do_not_increase_the_distances() -> None:
    points = torch.rand(300, 2)
    errors = []
    for num_steps in (0, 1, 3, 20):
        centers = find_clusters(points, 9, seeded(), num_steps)
        errors.append(float(torch.cdist(points, centers).amin(dim=1).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]


def test_fewer_different_points_than_clusters_leave_some_empty() -> None:
    points = torch.tensor([[1.0, 2], [5, 6]]).repeat(4, 1)
    centers = find_clusters(points, 5, seeded())
    cluster = assign(points, centers)
    assert centers.shape == (5, 2) and centers.isfinite().all()
    assert len(set(cluster.tolist())) == 2
    assert torch.equal(centers[cluster], points)
    assert (torch.cdist(centers, points).amin(dim=1) == 0).all()  # empty ones keep their center


def test_the_seed_fixes_the_clusters() -> None:
    points = torch.rand(100, 4)
    first, again, other = (find_clusters(points, 6, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        find_clusters(torch.empty(0, 3), 2, seeded())
