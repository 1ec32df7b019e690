"""`make demo`: ask a small checkpoint about a drawn picture, offline.

There is no trained checkpoint in the package yet, so this one is made on the spot with random weights: everything runs as it
does with a real one, and the answer is nonsense.
"""

import tempfile
from pathlib import Path

from convert.random_checkpoint import make
from smolvlm_mlx import Options, load, stream_generate

from PIL import Image, ImageDraw


def draw(path: Path) -> Path:
    image = Image.new("RGB", (320, 240), "white")
    canvas = ImageDraw.Draw(image)
    canvas.ellipse((30, 60, 150, 180), fill="red")
    canvas.rectangle((190, 80, 290, 180), fill="blue")
    image.save(path)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make(Path(folder) / "random")
        picture = draw(Path(folder) / "picture.png")
        model, processor = load(checkpoint)
        print("A red circle and a blue square, 320 x 240 pixels. What is in the picture?\n")
        stream = stream_generate(model, processor, "What is in the picture?", Options(max_tokens=48), images=[picture])
        for piece in stream:
            print(piece.encode("unicode_escape").decode(), end="", flush=True)
    done = stream.statistics
    print(
        "\n\n(Nonsense, as it must be: this checkpoint has random weights. "
        f"{done.tiles} tiles, {done.prompt_tokens} prompt tokens, {done.generated_tokens} tokens of answer.)\n"
        "A real answer takes a real checkpoint from the hub:\n"
        '  .venv/bin/smolvlm-mlx generate --image cat.jpg "What is in the picture?"'
    )


if __name__ == "__main__":
    main()
