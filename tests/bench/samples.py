"""The pictures and the video that peers.py measures with, into a folder:
`python tests/bench/samples.py FOLDER`.

A process of its own, so that the memory it takes is not counted with that of others (see peers.py).
"""

import io
import sys
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.presets import random_picture

import av
import numpy as np
from PIL import Image

SIZES = ((512, 512), (800, 600), (1600, 1067), (4000, 3000))
MANY, FRAMES = 8, 64


def main() -> None:
    """WIDTHxHEIGHT.jpg, many/0.jpg and so on of 640 x 480, and video.mp4 of 64 different frames,
    one a second."""
    folder, random = Path(sys.argv[1]), np.random.default_rng(0)
    for width, height in SIZES:
        (folder / f"{width}x{height}.jpg").write_bytes(random_picture((width, height), random))
    (folder / "many").mkdir()
    for number in range(MANY):
        (folder / "many" / f"{number}.jpg").write_bytes(random_picture((640, 480), random))
    with av.open(str(folder / "video.mp4"), "w") as file:
        stream: Any = file.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(FRAMES):
            picture = Image.open(io.BytesIO(random_picture((640, 480), random)))
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode(None))


if __name__ == "__main__":
    main()
