"""When frames are shown: what a constant rate is, and which frame a second has."""

from smolvlm_mlx.errors import VideoError
from smolvlm_mlx.inputs.timeline import Timeline, unwrap
from smolvlm_mlx.inputs.video import VideoSampling, choose, sample, sample_times

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def timeline(times: list[float], fps: float = 10, last: float = 0.0) -> Timeline:
    return Timeline.of(times, fps, last, 0.5)


@settings(max_examples=200)
@given(
    count=st.integers(1, 600),
    fps=st.sampled_from((1, 5, 10, 24, 25, 30, 50, 60)),
    wanted=st.sampled_from((0.5, 1.0, 2.0, 7.0, float("inf"))),
    most=st.integers(1, 64),
)
def test_both_rules_choose_the_same_but_for_rounding_at_a_constant_rate(
    count: int, fps: int, wanted: float, most: int
) -> None:
    even = timeline([number / fps for number in range(count)], fps)
    sampling = VideoSampling(fps=wanted, max_frames=most)
    assert even.is_constant
    by_number, by_clock = sample(count, fps, sampling), sample_times(even, sampling)
    assert choose(even, sampling) == by_number
    # Where a frame begins just then, the reference's rounding may give the one before.
    apart = np.abs(np.subtract.outer(by_number, by_clock))
    assert max(apart.min(0).max(), apart.min(1).max()) <= 1
    assert by_clock == by_number or (apart.min(0) == 0).mean() > 0.5


@pytest.mark.parametrize(("jitter", "is_constant"), [(0.04, True), (0.06, False)])
def test_a_rate_is_constant_if_frames_lie_within_half_a_frame_of_their_places(
    jitter: float, is_constant: bool
) -> None:
    times = [number / 10 + (number % 2) * jitter for number in range(21)]
    told = timeline(times, last=0.1)
    assert told.is_constant is is_constant
    assert told.duration == pytest.approx(2.1)
    assert told.second(1) == pytest.approx(0.1 if is_constant else 0.1 + jitter)


def test_a_rate_that_the_file_names_wrongly_is_measured() -> None:
    told = timeline([number / 30 for number in range(300)], 25)
    assert told.is_constant
    assert (told.fps, told.duration) == pytest.approx((30, 10))


@pytest.mark.parametrize(
    ("times", "last", "want"),
    [
        ([5.0], 0.0, (10, True, 0.1)),
        ([5.0], 5.0, (0.2, False, 5)),
        ([0.0, 0.1, 0.2], 0.15, (10, True, 0.3)),
        ([0.0, 0.1, 0.2], 0.2, (7.5, False, 0.4)),
        ([0.0, 0.1, 0.2], 0.25, (3 / 0.45, False, 0.45)),
        ([0.0, 0.1, 1.0], 0.0, (3 / 1.9, False, 1.9)),
        ([0.0, 0.1, 1.0], 0.5, (2, False, 1.5)),
        ([0.0, 0.15, 0.2], 0.1, (10, False, 0.3)),
        ([0.0, 0.0], 0.0, (20, False, 0.1)),
        ([0.0, 0.5, 1.0], 0.0, (2, True, 1.5)),
        ([0.0, 0.5, 1.0], 0.7, (2, True, 1.5)),
        ([0.0, 0.5, 1.0], 0.8, (3 / 1.8, False, 1.8)),
    ],
)
def test_rate_and_length(times: list[float], last: float, want: tuple[float, bool, float]) -> None:
    """At 10 a second, as the file says."""
    told = timeline(times, last=last)
    assert told.is_constant is want[1]
    assert (told.fps, told.duration) == pytest.approx(want[::2])


def test_times_in_any_order_count_from_the_first() -> None:
    told = timeline([1.6, 1.4, 1.5, 9.0], last=2.0)
    assert told.times.tolist() == pytest.approx([0, 0.1, 0.2, 7.6])
    assert told.duration == pytest.approx(9.6)
    assert [told.shown(second) for second in (-1, 0, 0.09, 0.1, 7.5, 7.6, 99)] == [
        *(0, 0, 0, 1, 2, 3, 3)
    ]


def test_a_long_last_frame_is_not_the_end() -> None:
    """Three seconds of frames, and the last of them for a minute."""
    told = timeline([*np.arange(0, 3, 0.1), 3.0], last=60.0)
    chosen = [told.second(number) for number in choose(told, VideoSampling())]
    assert chosen == pytest.approx([0, 1, 2, 3], abs=0.05)
    part = choose(told, VideoSampling(start=50, end=55))
    assert part == [30]
    told = timeline([*range(11)], last=10)
    assert choose(told, VideoSampling(start=5, end=20, max_frames=4)) == [5, 8, 10]


def test_a_part_of_a_variable_rate_is_chosen_by_the_clock() -> None:
    told = timeline([*range(50), *np.arange(50, 60, 1 / 60)], 650 / 60)
    assert choose(told, VideoSampling(start=20, end=30)) == list(range(20, 30))
    assert choose(told, VideoSampling(start=49.5, end=50.25)) == [49]
    assert choose(told, VideoSampling(max_frames=1, start=59.99)) == [649]
    with pytest.raises(VideoError, match="the video ends after 60 s, before start 60"):
        choose(told, VideoSampling(start=60))
    seconds = [told.second(number) for number in choose(told, VideoSampling())]
    assert [int(second) for second in seconds] == list(range(60))


@pytest.mark.parametrize(
    ("stamps", "want"),
    [
        ([5.0, 5.1, 5.2], [0, 0.1, 0.2]),
        ([None, None, 7.0, 7.1], [0, 0.1, 0.2, 0.3]),
        ([0.0, None, None, 0.3], [0, 0.1, 0.2, 0.3]),
        ([0.0, 0.3, 0.1, 0.2, 0.6], [0, 0.3, 0.1, 0.2, 0.6]),  # reordered
        ([9.0, 9.1, 0.0, 0.1], [0, 0.1, 0.2, 0.3]),  # begins anew
        ([0.0, 0.1, 500.0, 500.1], [0, 0.1, 0.2, 0.3]),  # jumps
        ([0.0, 0.1, 5.0], [0, 0.1, 5.0]),
    ],
)
def test_times_go_on_where_another_count_begins(
    stamps: list[float | None], want: list[float]
) -> None:
    assert list(unwrap(stamps, 0.1, 10)) == pytest.approx(want)


@pytest.mark.parametrize(
    ("stamp", "want"), [(4.0, -16.0), (3.0, 1.0), (30.0, 10.0), (30.5, 1.0), (19.0, -1.0)]
)
def test_frames_go_back_and_ahead_so_far(stamp: float, want: float) -> None:
    assert list(unwrap([20.0, stamp], 1, 10)) == [0, want]
