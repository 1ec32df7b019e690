"""`make demo`: draw a picture and ask the bundled tiny checkpoint about it, offline."""

import sys
from pathlib import Path

from smolvlm_mlx import generate, load

from PIL import Image, ImageDraw, ImageFont

PICTURE = Path("demo.png")
QUESTIONS = ("Describe the picture.", "What does the text say?", "Where is the star?")


def draw() -> Image.Image:
    """A large red circle, a small blue star and a text: the picture of the README."""
    image = Image.new("RGB", (256, 256), (250, 246, 232))
    canvas = ImageDraw.Draw(image)
    canvas.ellipse((22, 26, 106, 110), fill=(222, 38, 38))
    star = [
        (190, 166),
        (194, 178),
        (207, 178),
        (197, 186),
        (201, 198),
        (190, 190),
        (179, 198),
        (183, 186),
        (173, 178),
        (186, 178),
    ]
    canvas.polygon(star, fill=(40, 80, 220))
    canvas.text((150, 70), "HAT", fill=(28, 28, 28), font=ImageFont.load_default(48), anchor="lm")
    return image


def main() -> None:
    image = draw()
    image.save(PICTURE)
    if sys.stdout.isatty():
        from rich.console import Console
        from textual_image.renderable import Image as Shown

        Console().print(Shown(image, width=32, height="auto"))
    print(f"This picture is in {PICTURE}.\n")
    model, processor = load("tiny")
    for question in QUESTIONS:
        print(f"> {question}")
        print(generate(model, processor, question, images=[image]) + "\n")
    print(
        "The tiny checkpoint knows shapes, colors and short texts, and nothing else of the world.\n"
        "Real pictures take a SmolVLM checkpoint, which is downloaded when it is first used:\n"
        '  .venv/bin/smolvlm-mlx generate --image cat.jpg "What is in the picture?"'
    )


if __name__ == "__main__":
    main()
