"""Where the image tokens of an answer's tiles came from."""

from typing import Literal

import numpy as np

from ..events import Statistics
from ..inputs.processor import Inputs

# "computed": encoded for this answer. "features": an equal tile was encoded before, in an earlier
# answer or in this one. "prompt": its keys and values are there from an earlier answer, so that it
# was not even read.
Origin = Literal["computed", "features", "prompt"]


def tile_origins(
    inputs: Inputs, statistics: Statistics, image_token_id: int, tokens_per_tile: int
) -> list[Origin]:
    """Return where those of each tile came from, of an answer whose prompt was read."""
    places = np.flatnonzero(inputs.input_ids == image_token_id)
    ends = places[tokens_per_tile - 1 :: tokens_per_tile] + 1
    computed, origins = set(statistics.encoded_tiles), list[Origin]()
    for end, digest in zip(ends.tolist(), inputs.tile_digests, strict=True):
        if end <= statistics.reused_tokens:
            origins.append("prompt")
        elif digest in computed:
            computed.discard(digest)  # those after it are equal
            origins.append("computed")
        else:
            origins.append("features")
    return origins
