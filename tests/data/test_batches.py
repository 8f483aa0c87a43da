from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowbit._errors import ConfigError, DataError
from lowbit.data import Augmentation, Batches, Normalization, Split, _batches

PLAIN = Normalization((0.0,), (1 / 255,))  # leaves pixel values as they are


def numbered(count: int) -> Split:
    """Image k is k all over, and so is its label."""
    values = torch.arange(count)
    return Split(values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 3).contiguous(), values)


def pictures(count: int, channels: int = 3, height: int = 6, width: int = 5) -> Split:
    generator = torch.Generator().manual_seed(11)
    images = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count))


def seen(batches: Batches, epoch: int = 0) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches.epoch(epoch)]


def together(batches: Batches, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(batches.epoch(epoch))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


sizes = {"count": st.integers(1, 60), "size": st.integers(1, 9), "ranks": st.integers(1, 5)}


@settings(deadline=None)
@given(**sizes)
def test_evaluation_counts_each_image_exactly_once(count: int, size: int, ranks: int) -> None:
    assume(count >= ranks and (size > 1 or count % ranks == 0))
    shares = []
    for rank in range(ranks):
        batches = Batches(numbered(count), size, PLAIN, device="cpu", rank=rank, world_size=ranks)
        share = seen(batches)
        assert len(share) == len(batches) == -(-count // (size * ranks))
        assert all(1 <= len(batch) <= size for batch in share)
        shares.append([label for batch in share for label in batch])
    assert sorted(label for share in shares for label in share) == list(range(count))


@pytest.mark.parametrize(("count", "size", "ranks"), [(1, 1, 2), (3, 8, 4), (7, 1, 2), (9, 1, 4)])
def test_ranks_that_cannot_have_equally_many_batches_are_refused(count: int, size: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} images cannot give {ranks} ranks"):
        Batches(numbered(count), size, PLAIN, device="cpu", world_size=ranks)


@settings(deadline=None)
@given(**sizes, seed=st.integers(0, 2**40))
def test_training_pads_ranks_to_one_length_and_leaves_no_image_out(
    count: int, size: int, ranks: int, seed: int
) -> None:
    shares = []
    for rank in range(ranks):
        batches = Batches(
            numbered(count), size, PLAIN, device="cpu", shuffle=True, seed=seed, rank=rank, world_size=ranks
        )
        shares.append(seen(batches, epoch=3))
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1
    counts = Counter(label for share in shares for batch in share for label in batch)
    assert set(counts) == set(range(count))
    assert sum(counts.values()) == -(-count // ranks) * ranks


@settings(deadline=None)
@given(**sizes)
def test_drop_last_gives_full_batches_and_disjoint_ranks(count: int, size: int, ranks: int) -> None:
    assume(count >= size * ranks)
    labels: list[int] = []
    for rank in range(ranks):
        batches = Batches(
            numbered(count), size, PLAIN, device="cpu", shuffle=True, rank=rank, world_size=ranks, drop_last=True
        )
        share = seen(batches)
        assert [len(batch) for batch in share] == [size] * (count // (size * ranks))
        labels += [label for batch in share for label in batch]
    assert len(labels) == len(set(labels))


def test_drop_last_with_too_few_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 images .* smaller batch size"):
        Batches(numbered(3), 4, PLAIN, device="cpu", drop_last=True)


def make(seed: int = 0, rank: int = 0, ranks: int = 1, size: int = 8, repeat: int = 1) -> Batches:
    return Batches(
        pictures(40),
        size,
        Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)),
        device="cpu",
        augmentation=Augmentation(crop_padding=2, flip=True),
        shuffle=True,
        seed=seed,
        rank=rank,
        world_size=ranks,
        repeat=repeat,
    )


def test_an_epoch_is_a_pure_function_of_seed_epoch_and_rank() -> None:
    torch.manual_seed(1)
    first = together(make(seed=7), 2)
    torch.manual_seed(2)
    again = make(seed=7)
    _ = together(again, 0), together(again, 5)
    state = torch.get_rng_state()
    second = together(again, 2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (together(make(seed=8), 2), together(again, 3)):
        assert not torch.equal(first[1], other[1])


def test_order_and_augmentation_of_every_epoch_have_random_numbers_of_their_own() -> None:
    streams = [(seed, epoch, stream) for seed in range(4) for epoch in range(4) for stream in range(2)]
    assert len({_batches._generator(*stream).initial_seed() for stream in streams}) == len(streams)
    assert _batches._ORDER != _batches._AUGMENTATION


def test_the_augmentation_changes_with_the_epoch_where_the_order_does_not() -> None:
    batches = Batches(pictures(20), 20, Normalization.of(pictures(20)), device="cpu", augmentation=Augmentation(2))
    (first, labels), (second, same_labels) = together(batches, 0), together(batches, 1)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_see_what_one_process_sees(ranks: int) -> None:
    alone = list(make(size=8).epoch(4))
    shares = [list(make(rank=rank, ranks=ranks, size=8 // ranks).epoch(4)) for rank in range(ranks)]
    for step, (images, labels) in enumerate(alone):
        parts = [share[step] for share in shares]
        assert torch.equal(torch.stack([part[0] for part in parts], dim=1).flatten(0, 1), images)
        assert torch.equal(torch.stack([part[1] for part in parts], dim=1).flatten(), labels)


def test_repeat_passes_over_the_split_several_times_with_new_orders() -> None:
    _, labels = together(make(repeat=3))
    passes = labels.view(3, 40)
    assert all(sorted(one.tolist()) == list(range(40)) for one in passes)
    assert not torch.equal(passes[0], passes[1])
    assert len(make(repeat=3)) == 15


def slow(images: torch.Tensor, top: list[int], left: list[int], mirrored: list[int], padding: int) -> torch.Tensor:
    """One sample, one row, one pixel at a time."""
    out = torch.zeros_like(images)
    _, _, height, width = images.shape
    for i in range(len(images)):
        for y in range(height):
            for x in range(width):
                column = width - 1 - x if mirrored[i] else x
                source_y, source_x = y + top[i] - padding, column + left[i] - padding
                if 0 <= source_y < height and 0 <= source_x < width:
                    out[i, :, y, x] = images[i, :, source_y, source_x]
    return out


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    padding=st.integers(0, 9),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_crop_and_flip_match_a_loop_over_pixels(
    count: int, channels: int, height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    images = pictures(count, channels, height, width).images
    before = images.clone()
    augmentation = Augmentation(padding, flip)
    draws = augmentation.draw(count, torch.Generator().manual_seed(seed))
    fast = augmentation.apply(images, draws)
    expected = slow(images, draws.top.tolist(), draws.left.tolist(), draws.mirrored.tolist(), padding)
    assert torch.equal(fast, expected)
    assert torch.equal(images, before)


def test_every_shift_and_mirroring_is_drawn_equally_often() -> None:
    one = pictures(1)
    split = Split(one.images.expand(3600, -1, -1, -1).contiguous(), torch.zeros(3600, dtype=torch.int64))
    normalization = Normalization((0.0,) * 3, (1 / 255,) * 3)
    batches = Batches(split, 100, normalization, device="cpu", augmentation=Augmentation(1, True), shuffle=True)
    images, _ = together(batches)
    _, counts = images.round().unique(dim=0, return_counts=True)
    assert len(counts) == 3 * 3 * 2
    # 200 of each on average; the standard deviation is 13.7, and the seed is fixed.
    assert counts.min() > 145
    assert counts.max() < 255


def test_normalization_is_applied_per_channel() -> None:
    split = pictures(9)
    normalization = Normalization((0.1, 0.5, 0.9), (0.25, 0.5, 2.0))
    images, labels = together(Batches(split, 4, normalization, device="cpu"))
    mean = torch.tensor(normalization.mean, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(normalization.std, dtype=torch.float64).view(3, 1, 1)
    expected = (split.images.double() / 255 - mean) / std
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.arange(9))
    torch.testing.assert_close(images.double(), expected, rtol=1e-6, atol=1e-6)


def test_channels_last_changes_the_layout_and_no_value() -> None:
    normalization = Normalization.of(pictures(9))
    usual = next(Batches(pictures(9), 9, normalization, device="cpu").epoch(0))[0]
    last = next(Batches(pictures(9), 9, normalization, device="cpu", channels_last=True).epoch(0))[0]
    assert torch.equal(usual, last)
    assert usual.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_the_split_is_left_as_it_was() -> None:
    split = pictures(40)
    before = split.images.clone()
    batches = Batches(split, 8, Normalization.of(split), device="cpu", augmentation=Augmentation(2, True))
    for images, _ in batches.epoch(0):
        images.zero_()
    assert torch.equal(split.images, before)
    assert together(batches)[0].any()


def test_images_on_the_host_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = together(make())
    monkeypatch.setattr(_batches, "_store", _batches._OnHost)
    assert all(torch.equal(a, b) for a, b in zip(resident, together(make()), strict=True))


def test_images_stay_on_the_host_when_they_fill_more_than_half_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(4).images
    device = torch.device("cuda")
    monkeypatch.setattr(_batches, "_free_memory", lambda device: 2 * images.nbytes - 1)
    assert isinstance(_batches._store(images, device), _batches._OnHost)
    assert isinstance(_batches._store(images, torch.device("cpu")), _batches._OnDevice)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("store", ["_OnDevice", "_OnHost"])
def test_an_accelerator_gives_the_same_batches(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_store", getattr(_batches, store))
    split = pictures(40)
    options = {"augmentation": Augmentation(2, True), "shuffle": True}
    normalization = Normalization.of(split)
    expected = together(Batches(split, 8, normalization, device="cpu", **options))
    images, labels = together(Batches(split, 8, normalization, device="cuda", **options))
    assert images.device.type == labels.device.type == "cuda"
    assert torch.equal(labels.cpu(), expected[1])
    torch.testing.assert_close(images.cpu(), expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"repeat": 0}, "repeat is 0"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"seed": -1}, "seed -1"),
        ({"normalization": Normalization((0.5, 0.5), (1.0, 1.0))}, "2 channels; the images have 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    given = {"split": numbered(8), "batch_size": 2, "normalization": PLAIN, "device": "cpu", **options}
    with pytest.raises(ConfigError, match=message):
        Batches(**given)


def test_an_empty_split_and_a_negative_epoch_are_refused() -> None:
    with pytest.raises(DataError, match="empty split"):
        Batches(numbered(0), 2, PLAIN, device="cpu")
    with pytest.raises(ConfigError, match="counted from 0"):
        Batches(numbered(4), 2, PLAIN, device="cpu").epoch(-1)
    with pytest.raises(ConfigError, match="crop_padding is -1"):
        Augmentation(crop_padding=-1)
