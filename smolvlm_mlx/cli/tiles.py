"""What a model sees of a picture: its tiles drawn over it, or as a table, with what they cost."""

from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..errors import counted, escaped
from ..inputs.media import Attachment
from ..inputs.processor import Processor
from ..inputs.settings import ImageSettings
from .show import Console, print_picture, shows_pixels

SIDE = 1024  # pixels, of a drawing
ROWS = 24  # of a terminal, for a drawing
_NEW, _REUSED = (255, 200, 0), (0, 200, 120)  # colors of lines and labels


@dataclass(frozen=True)
class SeenTiles:
    """The tiles of a picture.

    Attributes:
        processor: of the model that sees them.
        encoded: digests of those that were encoded for the last answer, where there is one: the
            others were known from an earlier one.
    """

    picture: Attachment
    settings: ImageSettings
    processor: Processor
    encoded: Collection[bytes] | None = None

    @property
    def reused(self) -> list[bool]:
        """Of each tile, row by row, then of the global one, whether it was not computed: an equal
        one was, in this picture or before it."""
        digests = self.picture.tiled(self.settings).digests
        if self.encoded is None:
            return [False] * len(digests)
        return [
            digest not in self.encoded or digest in digests[:number]
            for number, digest in enumerate(digests)
        ]

    def summary(self) -> str:
        """Size, rows and columns, tiles, and tokens with the marks between tiles, in a line."""
        layout, (width, height) = self.picture.tiled(self.settings).layout, self.picture.size
        counts = counted(layout.rows, "row"), counted(layout.cols, "column")
        grid = f"{' x '.join(counts)} and the global tile"
        cut = f"{grid}: {layout.tiles} tiles" if layout.rows else "one tile"
        tokens = self.processor.count_tokens([layout])
        marks = tokens - layout.tiles * self.tokens
        return f"{width} x {height} pixels, {cut}, {tokens} tokens ({marks} marks)"

    @property
    def tokens(self) -> int:
        """Of a tile."""
        return self.processor.tokens_per_tile

    def table(self) -> str:
        """Each tile's tokens where it is in the picture; * marks what was reused."""
        layout, reused = self.picture.tiled(self.settings).layout, self.reused
        cells = [f"{self.tokens}{'*' if known else ' '}" for known in reused]
        columns, width = max(layout.cols, 1), max(len(cells[0]), 3) + 1
        numbers = "".join(f"{number} ".rjust(width) for number in range(1, columns + 1))
        lines = [f"{'':6}{numbers}"] if layout.rows else []
        for row in range(layout.rows):
            part = cells[row * columns : (row + 1) * columns]
            lines.append(f"{row + 1:<6}" + "".join(cell.rjust(width) for cell in part))
        lines.append("global" + cells[-1].rjust(width))
        return "\n".join(line.rstrip() for line in [*lines, self.notes()])

    def notes(self) -> str:
        """What a tile is of the picture, and how many were reused."""
        layout, size = self.picture.tiled(self.settings).layout, self.settings.tile_size
        counts = max(layout.cols, 1), max(layout.rows, 1)
        sides = zip(self.picture.size, counts, strict=True)
        width, height = (round(side / count) or "less than 1" for side, count in sides)
        parts = [f"a tile is {width} x {height} pixels of the picture, seen as {size} x {size}"]
        if self.encoded is not None:
            parts.append(f"{sum(self.reused)} reused (*) for the last answer")
        return "; ".join(parts)

    def drawn(self) -> Image.Image:
        """The picture with its tiles drawn over it, each with its tokens."""
        layout = self.picture.tiled(self.settings).layout
        image = self.picture.preview.convert("RGB")
        columns, rows = max(layout.cols, 1), max(layout.rows, 1)
        side = max(SIDE // max(columns, rows), 1)
        image = image.resize((columns * side, rows * side))
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(side // 6, 8))
        for number, known in enumerate(self.reused[: rows * columns]):
            left, top = number % columns * side, number // columns * side
            color, word = (_REUSED, " reused") if known else (_NEW, "")
            draw.rectangle((left, top, left + side - 1, top + side - 1), None, color, 3)
            label = f"{self.tokens}{word}"
            place = (left + side // 16, top + side // 16)
            draw.rectangle(draw.textbbox(place, label, font), (0, 0, 0))
            draw.text(place, label, color, font)
        width, height = self.picture.size
        scale = SIDE / max(width, height)
        return image.resize((max(round(width * scale), 1), max(round(height * scale), 1)))

    def print_on(self, console: Console, style: str | None = None) -> None:
        """Draw them where the terminal shows pictures; elsewhere print the table."""
        if shows_pixels(console):
            print_picture(console, self.drawn(), ROWS)
            console.print(self.notes(), style=style)
        else:
            console.print(self.table(), style=style)

    def describe(self) -> str:
        """The picture's name, what it costs, and the table."""
        return f"{escaped(self.picture.name)}: {self.summary()}\n{self.table()}"
