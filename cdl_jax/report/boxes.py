"""Draws labeled boxes into images."""

from collections.abc import Sequence

import numpy as np

_SMALLEST_FONT = 10  # pixels


def draw(image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], color: str = "#ffb000") -> np.ndarray:
    """Draws boxes with their labels.

    Lines and letters grow with the image. Around a line is a black edge, to be seen on any background. A label is above
    its box, or inside where the image ends. An empty label is not drawn.

    >>> out = draw(np.full((6, 8, 3), 9, np.uint8), np.array([[2.0, 1.0, 5.0, 5.0]]), [""], "#070707")
    >>> print(out[..., 0])
    [[9 0 0 0 0 0 0 0]
     [9 0 7 7 7 7 7 7]
     [9 0 7 7 7 7 7 7]
     [9 0 7 7 9 9 7 7]
     [9 0 7 7 9 9 7 7]
     [9 0 7 7 7 7 7 7]]

    Args:
      image: uint8 `[height, width, 3]`, unchanged.
      boxes: float `[n, 4]`, (x, y, width, height) in pixels; may exceed the image.
      labels: n of them, one line each.
      color: of lines and of the background of labels, such as "#ff0000".

    Returns:
      A new image, uint8 `[height, width, 3]`.
    """
    from PIL import Image, ImageDraw

    drawn = Image.fromarray(image)
    canvas, font = ImageDraw.Draw(drawn), _font(max(drawn.size))
    limit = np.array(drawn.size) - 1
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).clip(-1, [*limit + 1, *limit + 1])
    corners, width = corners.round(), max(2, round(max(drawn.size) / 250))
    for box in corners:
        canvas.rectangle((box + [-1, -1, 1, 1]).tolist(), outline="black")
        canvas.rectangle(box.tolist(), outline=color, width=width)
    for (x, y, *_), label in zip(corners.tolist(), labels, strict=True):
        if label:
            _draw_label(canvas, font, (x, y), label, color, limit)
    return np.asarray(drawn)


def write(image: np.ndarray, line: str) -> np.ndarray:
    """Writes a line of black letters at the left of a light image.

    Args:
      image: uint8 `[height, width, 3]`, unchanged.
      line: cut off where the image ends.

    Returns:
      A new image, uint8 `[height, width, 3]`.
    """
    from PIL import Image, ImageDraw

    written = Image.fromarray(image)
    ImageDraw.Draw(written).text((4, 4), line, fill="black", font=_font(_SMALLEST_FONT * 45))
    return np.asarray(written)


def _font(side):
    """Returns a font for an image whose longer side has `side` pixels."""
    import matplotlib
    from PIL import ImageFont

    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # has Greek and Cyrillic; Pillow's own has not
    return ImageFont.truetype(path, max(_SMALLEST_FONT, round(side / 36)), layout_engine=ImageFont.Layout.BASIC)


def _draw_label(canvas, font, corner, label, color, limit):
    from PIL import ImageColor

    ascent, descent = font.getmetrics()
    size = np.array([font.getlength(label) + 2, ascent + descent])
    x, y = np.clip(np.array(corner) - [0, size[1]], 0, np.maximum(limit - size, 0)).round().tolist()
    luminance = np.dot(ImageColor.getrgb(color)[:3], (0.299, 0.587, 0.114))
    canvas.rectangle((x, y, x + size[0], y + size[1]), fill=color)
    canvas.text((x + 1, y), label, fill="black" if luminance > 140 else "white", font=font)
