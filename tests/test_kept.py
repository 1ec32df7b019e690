"""What is kept of pictures between requests has a bound in bytes."""

import gc

from smolvlm_mlx.inputs import media
from smolvlm_mlx.inputs.image import STRANGERS
from smolvlm_mlx.inputs.kept import Kept
from smolvlm_mlx.inputs.media import Attachment, Recent
from smolvlm_mlx.inputs.settings import ImageSettings
from tests.support.pictures import encoded, noise

import numpy as np
import pytest

SETTINGS = ImageSettings.from_dict(
    {
        "size": {"longest_edge": 128},
        "max_image_size": {"longest_edge": 64},
        "do_image_splitting": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
        "resample": 1,
    },
    "preprocessor_config.json",
)


class Owner:
    pass


def test_the_oldest_goes_first() -> None:
    kept, owners = Kept(100), [Owner() for _ in range(4)]
    for number, owner in enumerate(owners[:3]):
        kept.put(owner, number, 30)
    assert kept.get(owners[0]) == 0  # and is the newest now
    kept.put(owners[3], 3, 40)
    assert [kept.get(owner) for owner in owners] == [0, None, 2, 3]
    assert kept.size == 100


def test_what_is_put_again_takes_the_place_of_the_first() -> None:
    kept, owner = Kept(100), Owner()
    kept.put(owner, "a", 90)
    kept.put(owner, "b", 20)
    assert (kept.get(owner), kept.size) == ("b", 20)


def test_one_that_is_too_large_stays_alone() -> None:
    kept, small, large = Kept(100), Owner(), Owner()
    kept.put(small, "small", 10)
    kept.put(large, "large", 101)
    assert (kept.get(small), kept.get(large), kept.size) == (None, "large", 101)
    kept.put(small, "small", 10)
    assert (kept.get(small), kept.get(large), kept.size) == ("small", None, 10)


def test_what_has_no_owner_is_gone() -> None:
    kept, owner = Kept(100), Owner()
    kept.put(owner, "a", 90)
    del owner
    gc.collect()
    assert kept.size == 0


def test_sixteen_large_pictures_take_no_more_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their tiles are the same, whether they were kept or not."""
    kept = Kept(2**18)
    monkeypatch.setattr(media, "KEPT", kept)
    data = [encoded(noise(200, 150, seed), "PNG") for seed in range(16)]
    pictures = [Attachment(each) for each in data]
    assert kept.size <= 2**18 < 16 * 4 * 200 * 150
    want = [Attachment(each).tiled(SETTINGS).tiles for each in data]
    for _ in range(2):
        have = [picture.tiled(SETTINGS).tiles for picture in pictures]
        assert all(np.array_equal(*pair) for pair in zip(have, want, strict=True))
        assert kept.size <= 2**18


def test_tiles_that_are_kept_are_not_cut_again() -> None:
    picture = Attachment(encoded(noise(200, 150), "PNG"))
    assert picture.tiled(SETTINGS) is picture.tiled(SETTINGS)


def test_recent_pictures_are_bounded_in_bytes() -> None:
    data = [encoded(noise(100, 80, seed), "BMP") for seed in range(4)]
    recent = Recent(most=10, most_bytes=2 * len(data[0]))
    first, second, third = (recent.attachment(each, STRANGERS, None) for each in data[:3])
    assert recent.attachment(data[2], STRANGERS, None) is third
    assert recent.attachment(data[1], STRANGERS, None) is second
    assert recent.attachment(data[0], STRANGERS, None) is not first
    alone = Recent(most_bytes=len(data[0]) - 1)
    assert alone.attachment(data[3], STRANGERS, None) is not alone.attachment(
        data[3], STRANGERS, None
    )
