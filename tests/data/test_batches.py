"""Batches of a split: their order, the last batch, and validation splits."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.data import SortOfClevrConfig, TriangleConfig
from associative_transformer.data.batches import Share, Split
from associative_transformer.data.questions import encode
from associative_transformer.data.sort_of_clevr import TEST, draw_pictures, generate_items
from associative_transformer.interface import PADDING, Batch, UserError

CPU = torch.device("cpu")


class RowLoader:
    """Returns the row number as the image, plus a shift that depends on the seed in training."""

    device = CPU

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def load(self, rows: Tensor, seed: np.random.SeedSequence | None) -> Iterator[Tensor]:
        shift = 0 if seed is None else int(seed.generate_state(1)[0]) % 1000 / 1000
        for row in rows:
            self.loaded += row.tolist()
            yield row[:, None, None, None] + torch.tensor(float(shift))


def make_split(num_items: int, has_questions: bool = False) -> Split:
    questions = torch.arange(2.0 * num_items).view(-1, 2) if has_questions else None
    labels = torch.arange(num_items) % 7
    return Split(labels, torch.arange(num_items) + 100, RowLoader(), questions)


def make_questions(num_images: int, each: int = 3) -> Split:
    """Make several questions about each image, as vectors of image and question index."""
    asked = torch.arange(num_images * each)
    questions = torch.stack([(asked // each).float(), asked.float()], dim=1)
    return Split(asked % 7, asked // each + 100, RowLoader(), questions)


def items(batches: Iterable[Batch]) -> list[int]:
    images = torch.cat([batch.images for batch in batches]).flatten()
    return (images.floor().long() - 100).tolist()


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
    )


def test_an_epoch_yields_every_image_at_most_once_and_drops_the_incomplete_batch() -> None:
    split = make_split(23)
    seen = items(split.train_batches(5, seed=0, epoch=0))
    assert split.steps_per_epoch(5) == 4
    assert len(seen) == len(set(seen)) == 20
    assert seen != sorted(seen)


def test_the_dropped_images_differ_between_epochs() -> None:
    split = make_split(23)
    seen = {item for epoch in range(20) for item in items(split.train_batches(5, 0, epoch))}
    assert seen == set(range(23))


def test_order_and_augmentation_depend_only_on_seed_and_epoch() -> None:
    split = make_split(23)
    reference = list(split.train_batches(5, seed=1, epoch=2))
    list(split.train_batches(5, seed=3, epoch=4))
    torch.rand(3)
    assert same(reference, list(make_split(23).train_batches(5, seed=1, epoch=2)))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = list(split.train_batches(5, seed, epoch))
        assert items(other) != items(reference)
        assert not torch.equal(other[0].images % 1, reference[0].images % 1)


def make_unequal() -> Split:
    labels = torch.tensor([0] * 70 + [2] * 20 + [3] * 5)  # no item of class 1
    return Split(labels, torch.arange(95) + 100, RowLoader(), is_balanced=True)


def test_a_balanced_epoch_has_as_many_batches_and_each_class_equally_often() -> None:
    split = make_unequal()
    for epoch in range(5):
        batches = list(split.train_batches(10, 0, epoch))
        assert len(batches) == split.steps_per_epoch(10) == 9
        labels = torch.cat([batch.labels for batch in batches])
        assert labels.bincount(minlength=4).tolist() == [30, 0, 30, 30]
        assert labels.tolist() != sorted(labels.tolist())
        assert torch.equal(labels, split.labels[items(batches)])
    counts = [
        torch.cat([b.labels for b in split.train_batches(19, 0, epoch)]).bincount().tolist()
        for epoch in range(9)
    ]
    assert {sum(count) for count in counts} == {95}  # 31 or 32 of each class
    assert {n for count in counts for n in count} == {0, 31, 32}
    assert len({tuple(count) for count in counts}) > 1


def test_a_balanced_epoch_draws_all_items_of_a_class_equally_often_in_the_long_run() -> None:
    split = make_unequal()
    drawn = torch.tensor(
        [i for epoch in range(40) for i in items(split.train_batches(10, 1, epoch))]
    )
    counts = drawn.bincount(minlength=95).float()
    for label, number in ((0, 70), (2, 20), (3, 5)):
        of_class = counts[split.labels == label]
        assert of_class.mean() == pytest.approx(40 * 30 / number)
        assert of_class.min() > 0.4 * of_class.mean()


def test_balanced_batches_depend_only_on_seed_and_epoch() -> None:
    whole = list(make_unequal().train_batches(12, 1, 2))
    assert same(whole[4:], list(make_unequal().train_batches(12, 1, 2, first_step=4)))
    other = list(make_unequal().train_batches(12, 1, 3))
    assert items(other) != items(whole)
    for parts in (1, 3):
        shares = [
            list(make_unequal().train_batches(12, 1, 2, share=Share(rank, 2, parts)))
            for rank in range(2)
        ]
        for batch, first, second in zip(whole, *shares, strict=True):
            micro = zip(first.images.chunk(parts), second.images.chunk(parts), strict=True)
            joined = torch.cat([part for pair in micro for part in pair])
            assert torch.equal(joined, batch.images)


def test_a_resumed_epoch_continues_with_the_same_batches() -> None:
    split = make_split(23, has_questions=True)
    whole = list(split.train_batches(5, 0, 1))
    fresh = make_split(23)
    assert same(whole[3:], list(fresh.train_batches(5, 0, 1, first_step=3)))
    assert len(fresh.loader.loaded) == 5  # skipped steps are not loaded
    assert list(split.train_batches(5, 0, 1, first_step=4)) == []


def test_labels_and_questions_stay_with_their_image() -> None:
    split = make_split(23, has_questions=True)
    for batches in (split.train_batches(5, 0, 0), split.eval_batches(5)):
        for batch in batches:
            item = batch.images.flatten().floor().long() - 100
            is_real = batch.labels != PADDING
            assert torch.equal(batch.labels[is_real], item[is_real] % 7)
            assert batch.questions is not None
            assert torch.equal(batch.questions[:, 1], 2.0 * item + 1)


@pytest.mark.parametrize("num_items", [1, 4, 5, 6, 23])
def test_evaluation_yields_every_image_once_in_order_and_pads_the_last_batch(
    num_items: int,
) -> None:
    batches = list(make_split(num_items).eval_batches(5))
    assert all(len(batch.images) == 5 for batch in batches)
    assert not any((batch.images % 1).any() for batch in batches)  # nothing is augmented
    seen, labels = items(batches), torch.cat([batch.labels for batch in batches])
    assert seen[:num_items] == list(range(num_items))
    assert set(seen[num_items:]) <= {num_items - 1}  # the last image repeated
    assert (labels != PADDING).tolist() == [i < num_items for i in range(len(seen))]


def test_a_data_set_smaller_than_a_batch_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        UserError, match=r"has 23 images, fewer than .* 24: .*--train.batch-size 23"
    ):
        make_split(23).train_batches(24, seed=0, epoch=0)


def test_the_error_about_too_few_questions_calls_them_questions() -> None:
    with pytest.raises(UserError, match=r"has 24 questions, fewer than one batch of 25"):
        make_questions(8).train_batches(25, seed=0, epoch=0)


def test_every_question_occurs_once_per_epoch_with_its_image() -> None:
    split = make_questions(10)
    for batches in (split.train_batches(5, 0, 0), split.eval_batches(5)):
        seen = []
        for batch in batches:
            assert batch.questions is not None
            shown = batch.images.flatten().floor() - 100
            assert torch.equal(batch.questions[:, 0], shown)
            assert torch.equal(batch.questions[:, 1].long() % 7, batch.labels)
            seen += batch.questions[:, 1].tolist()
        assert sorted(seen) == list(range(30))


def test_a_validation_split_is_fixed_disjoint_and_complete() -> None:
    split = make_split(50, has_questions=True)
    train, validation = split.split_validation(0.2)
    assert validation is not None
    assert (len(train), len(validation)) == (40, 10)
    assert sorted(train.rows.tolist() + validation.rows.tolist()) == split.rows.tolist()
    assert validation.rows.tolist() != list(range(100, 110))
    assert torch.equal(validation.labels, (validation.rows - 100) % 7)
    again = make_split(50).split_validation(0.2)[1]
    assert again is not None
    assert torch.equal(validation.rows, again.rows)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_all_questions_about_an_image_stay_in_the_same_split(fraction: float) -> None:
    split = make_questions(30)
    train, validation = split.split_validation(fraction)
    assert validation is not None
    ours, theirs = set(train.rows.tolist()), set(validation.rows.tolist())
    assert not ours & theirs
    assert len(theirs) == round(fraction * 30)
    for part in (train, validation):
        assert part.questions is not None
        assert len(part) == 3 * len(set(part.rows.tolist()))
        assert part.questions[:, 1].tolist() == sorted(part.questions[:, 1].tolist())
        assert torch.equal(part.questions[:, 0] + 100, part.rows.float())
        assert torch.equal(part.labels, part.questions[:, 1].long() % 7)
    assert theirs != set(range(100, 100 + len(theirs)))


def test_the_validation_images_do_not_depend_on_the_number_of_questions() -> None:
    few, many = (
        make_questions(30, each=1).split_validation(0.2)[1],
        make_questions(30, each=5).split_validation(0.2)[1],
    )
    plain = Split(torch.zeros(30).long(), torch.arange(30) + 100, RowLoader()).split_validation(
        0.2
    )[1]
    assert few is not None
    assert many is not None
    assert plain is not None
    assert set(few.rows.tolist()) == set(many.rows.tolist()) == set(plain.rows.tolist())


def test_a_fraction_of_zero_means_no_validation_and_an_empty_part_is_refused() -> None:
    split = make_split(50)
    assert split.split_validation(0.0) == (split, None)
    for fraction in (0.001, 0.999):
        with pytest.raises(UserError, match=rf"{fraction} x 50 images .* --data.val-fraction"):
            split.split_validation(fraction)
    with pytest.raises(UserError, match=r"0\.01 x 30 images"):
        make_questions(30).split_validation(0.01)  # 90 questions


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((200, 200, 5), 0.1, (20, 19, 1)),
        ((50, 50), 0.2, (10, 10)),
        ((6, 3), 0.34, (2, 1)),
        ((30, 1), 0.1, (3, 0)),
        ((5, 5, 5, 5, 5), 0.04, (0, 0, 0, 0, 1)),  # room for one only
        ((2, 2, 8), 0.9, (1, 1, 7)),  # one image of each class stays
        ((4, 0, 4), 0.5, (2, 0, 2)),
    ],
)
def test_a_stratified_validation_split_keeps_the_share_of_each_class(
    counts: tuple[int, ...], fraction: float, expected: tuple[int, ...]
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    split = Split(labels, torch.arange(len(labels)) + 100, RowLoader())
    train, validation = split.split_validation(fraction, is_stratified=True)
    assert validation is not None
    size = len(counts)
    assert tuple(validation.labels.bincount(minlength=size).tolist()) == expected
    assert sorted(train.rows.tolist() + validation.rows.tolist()) == split.rows.tolist()
    again = split.split_validation(fraction, is_stratified=True)[1]
    assert again is not None
    assert torch.equal(again.rows, validation.rows)


def test_a_validation_split_does_not_change_the_augmentation_of_other_images() -> None:
    whole = make_split(50)
    train, _ = whole.split_validation(0.2)
    rows = {
        row for batch in train.train_batches(40, 0, 0) for row in batch.images.flatten().tolist()
    }
    assert rows <= {r for b in whole.train_batches(50, 0, 0) for r in b.images.flatten().tolist()}


def test_generated_triangles_load_as_a_data_set() -> None:
    config = TriangleConfig(num_train=40, num_test=10, val_fraction=0.25)
    data = config.load(CPU)
    assert data.validation is not None
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 10, 10]
    assert (data.class_names, data.num_skipped) == (("equilateral", "other"), 0)
    batch = next(data.train.train_batches(8, 0, 0))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.images.unique().tolist() == [0, 1]
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])


@pytest.mark.parametrize(("channels", "raw", "white"), [(1, False, 1.0), (3, True, 255.0)])
def test_triangles_have_the_configured_channels_and_scale(
    channels: int, raw: bool, white: float
) -> None:
    data = TriangleConfig(num_train=8, num_test=8, channels=channels, raw=raw).load(CPU)
    (batch,) = data.test.eval_batches(8)
    assert batch.images.shape == (8, channels, 64, 64)
    assert batch.images.unique().tolist() == [0.0, white]


def test_triangles_are_never_augmented_and_the_test_set_is_fixed() -> None:
    config = TriangleConfig(num_train=16, num_test=8)
    data, again = config.load(CPU), config.load(CPU)
    assert same(list(data.test.eval_batches(8)), list(again.test.eval_batches(8)))
    trained = torch.cat([batch.images for batch in data.train.train_batches(16, 0, 0)])
    stored = torch.cat([batch.images for batch in data.train.eval_batches(16)])
    assert torch.equal(trained.flatten(1).sum(1).sort()[0], stored.flatten(1).sum(1).sort()[0])


def test_generated_questions_load_with_their_pictures_and_answers() -> None:
    types = ("ternary", "binary")
    config = SortOfClevrConfig(
        num_train=10, num_test=4, num_questions=3, question_types=types, val_fraction=0.2
    )
    data = config.load(CPU)
    assert data.validation is not None
    assert [len(part) for part in (data.train, data.validation, data.test)] == [48, 12, 24]
    assert len(data.class_names) == 10
    assert data.guesses is not None
    assert data.guesses.shape == (9,)
    generated = generate_items(config, TEST)
    pictures = torch.from_numpy(draw_pictures(generated.scenes)).float() / 255
    vectors = torch.from_numpy(encode(generated.questions))
    start = 0
    for batch in data.test.eval_batches(6):
        part = slice(start, start + 6)
        torch.testing.assert_close(batch.images, pictures[generated.picture[part]])
        assert batch.questions is not None
        assert torch.equal(batch.questions, vectors[part])
        assert batch.labels.tolist() == generated.answers[part].tolist()
        start += 6
    for batch in data.train.train_batches(48, 0, 0):  # pictures are never augmented
        assert batch.images.max() == 1
        assert batch.images.unique().numel() <= 4 + 1  # 0, 1, and shades of orange and gray
