"""Pictures for prompts that are built in, drawn with Pillow: each is known by its number."""

from collections.abc import Callable
from math import pi, sin
from random import Random

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (205, 40, 40),
    "blue": (40, 80, 190),
    "green": (40, 140, 70),
    "yellow": (235, 200, 50),
    "purple": (130, 60, 160),
    "orange": (235, 130, 40),
}
WORDS = (
    "invoice total amount date paid order number customer street city phone page section table "
    "energy water report monthly result average growth price unit quantity delivery payment due "
    "account balance reference contract signature office project meeting notes summary item"
).split()


def scene(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Shapes of a few colors on a plain ground."""
    rng, (width, height) = Random(number), size
    image = Image.new("RGB", size, rng.choice(("white", "lightgray", "beige")))
    draw = ImageDraw.Draw(image)
    for color in rng.sample(list(COLORS.values()), rng.randint(2, 4)):
        side = rng.randint(height // 6, height // 3)
        x, y = rng.randint(0, width - side), rng.randint(0, height - side)
        form = rng.choice((draw.ellipse, draw.rectangle, draw.rounded_rectangle))
        form((x, y, x + side, y + side), fill=color)
    return image


def landscape(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A sky, a sun and hills, with grain, as photographs have it."""
    rng, (width, height) = Random(number), size
    top, low = (tuple(rng.randint(90, 255) for _ in range(3)) for _ in range(2))
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    for y in range(height):
        mixed = (round(a + (b - a) * y / height) for a, b in zip(top, low, strict=True))
        draw.line((0, y, width, y), fill=tuple(mixed))
    x, y, radius = rng.randint(0, width), rng.randint(0, height // 2), rng.randint(8, 30)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 240, 200))
    for hill in range(3):
        base, wave, start = height * (5 + hill) / 8, rng.uniform(1, 4), rng.uniform(0, 2 * pi)
        line = [
            (x, base + height / 12 * sin(start + wave * 2 * pi * x / width)) for x in range(width)
        ]
        color = (rng.randint(20, 90), rng.randint(70, 150), rng.randint(20, 80))
        draw.polygon([*line, (width, height), (0, height)], fill=color)
    grain = Image.frombytes("L", size, rng.randbytes(width * height)).convert("RGB")
    return Image.blend(image, grain, 0.06)


def chart(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Bars with their names and values."""
    rng, (width, height) = Random(number), size
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(height // 18, 8))
    bars, color = rng.randint(3, 6), rng.choice(list(COLORS.values()))
    step, floor = width / bars, height * 0.88
    for bar in range(bars):
        value = rng.randint(10, 100)
        left, right = step * (bar + 0.2), step * (bar + 0.8)
        draw.rectangle((left, floor - value / 100 * height * 0.75, right, floor), fill=color)
        draw.text((left, floor + 2), rng.choice("ABCDEFGH") + str(bar + 1), "black", font)
        draw.text((left, floor - value / 100 * height * 0.75 - 16), str(value), "black", font)
    return image


def page(number: int, size: tuple[int, int] = (480, 640)) -> Image.Image:
    """A document of a heading, lines of words, and a table of numbers."""
    rng, (width, height) = Random(number), size
    image = Image.new("RGB", size, "white")
    draw, line = ImageDraw.Draw(image), height // 32
    font, large = ImageFont.load_default(line * 0.8), ImageFont.load_default(line * 1.6)
    draw.text((width // 12, line), " ".join(rng.sample(WORDS, 2)).title(), "black", large)
    for row in range(4, 16):
        text = " ".join(rng.choices(WORDS, k=rng.randint(4, 7)))
        draw.text((width // 12, row * line), text, "black", font)
    for row in range(18, 28):
        cells = (rng.choice(WORDS), str(rng.randint(1, 40)), f"{rng.uniform(1, 500):.2f}")
        for cell, x in zip(cells, (1, 6, 8), strict=True):
            draw.text((width * x // 12, row * line), cell, "black", font)
        draw.line((width // 12, row * line, width * 11 // 12, row * line), fill="gray")
    return image


def clip(number: int, size: tuple[int, int] = (320, 240)) -> list[Image.Image]:
    """Three frames of a shape that moves, as of a video."""
    rng, side = Random(number), size[1] // 4
    color = rng.choice(list(COLORS.values()))
    (x, y), (dx, dy) = (rng.randint(0, side) for _ in range(2)), (rng.randint(20, 60), 30)
    frames = []
    for frame in range(3):
        image = Image.new("RGB", size, "white")
        place = (x + frame * dx, y + frame * dy)
        ImageDraw.Draw(image).ellipse((*place, place[0] + side, place[1] + side), fill=color)
        frames.append(image)
    return frames


DRAWN: tuple[Callable[[int], Image.Image], ...] = (landscape, scene, chart)
