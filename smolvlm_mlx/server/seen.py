"""What pictures and videos are to the model: GET /tiles tells it of a size, and the end of an
answer of those that it was about."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from ..events import Statistics
from ..generation.origins import tile_origins
from ..inputs.image import MAX_SIDE
from ..inputs.media import Frames
from ..inputs.messages import ImagePart, Message, VideoPart
from ..inputs.processor import Inputs, Processor
from ..inputs.prompt import IMAGE
from ..inputs.settings import ImageOptions
from ..inputs.tiles import TiledImage, TileLayout, plan_tiles, tile_boxes
from ..inputs.video import VIDEO_OPTIONS
from ..options import options_of
from .budget import Budget, Spent
from .fields import Fields
from .openai import Seen
from .request import request_error

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
IMAGE_OPTIONS = [option.name for option in options_of(ImageOptions)]


class Size(Fields):
    """The query of GET /tiles: a picture's width and height, upright, or those of a video with its
    seconds; and the options that it is asked with."""

    model_config = ConfigDict(strict=False)  # all of a query is text

    width: Side
    height: Side
    seconds: Seconds | None = Field(None, description="Of a video; a picture has none.")
    longest_edge: int | None = None
    split: bool | None = None
    max_tiles: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str], budget: Budget) -> "Size":
        """Check a query.

        Raises:
            RequestError: a field is missing or cannot be used; the first is named.
        """
        try:
            return cls.model_validate(dict(query), context=budget)
        except ValidationError as error:
            raise request_error(error.errors()[0]) from None

    def seen(self, processor: Processor, defaults: ImageOptions, budget: Budget) -> Seen:
        """What it is to the model.

        Raises:
            SmolVLMError: an option is out of range, or it is more than a request may have.
        """
        options = ImageOptions(**self._given(IMAGE_OPTIONS)).over(defaults)
        size, spent = (self.width, self.height), Spent(budget, processor.sampling)
        if self.seconds is None:
            spent.add_picture(size, "width and height")
            settings = options.applied(processor.settings)
            layout = plan_tiles(size, settings)
            unasked = replace(
                settings, max_tiles=defaults.max_tiles or processor.settings.max_tiles
            )
            most = plan_tiles(size, unasked).tiles
            return seen_of(processor, size, [layout], most_tiles=most)
        own = self._given(VIDEO_OPTIONS)
        spent.add_video(size, self.seconds, own, "seconds")
        parts = processor.plan_video(self.seconds, own, options)
        return seen_of(processor, size, parts, is_video=True)

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def seen_of(
    processor: Processor, size: tuple[int, int], parts: Sequence[str | TileLayout], **more: Any
) -> Seen:
    """What a picture or a video is to the model that became these words and pictures."""
    layouts = [part for part in parts if isinstance(part, TileLayout)]
    shown = Seen(
        width=size[0],
        height=size[1],
        tiles=sum(layout.tiles for layout in layouts),
        tokens=processor.count_tokens(parts),
        **more,
    )
    if shown.is_video:
        return shown
    (layout,) = layouts
    boxes = [[round(side, 2) for side in box] for box in tile_boxes(layout, size)]
    return shown.model_copy(update={"rows": layout.rows, "cols": layout.cols, "boxes": boxes})


def all_seen(
    processor: Processor, messages: Sequence[Message], inputs: Inputs, statistics: Statistics
) -> list[Seen]:
    """What the pictures and videos of messages were to the model, in their order, and where the
    answer has their tiles from, if its prompt was read to its end."""
    media = [part for message in messages for part in message.media_parts]
    seen = [
        seen_of(
            processor,
            _size(part),
            [each.layout if isinstance(each, TiledImage) else each for each in became],
            is_video=isinstance(part, VideoPart),
        )
        for part, became in zip(media, inputs.media, strict=True)
    ]
    if not statistics.prefill_seconds:
        return seen
    image_token_id = processor.tokenizer.added[IMAGE]
    origins = iter(tile_origins(inputs, statistics, image_token_id, processor.tokens_per_tile))
    return [each.model_copy(update={"origins": [*islice(origins, each.tiles)]}) for each in seen]


def _size(part: ImagePart | VideoPart) -> tuple[int, int]:
    if isinstance(part, ImagePart):
        return part.image.size
    video = part.video
    return video.frames[0].size if isinstance(video, Frames) else video.size
