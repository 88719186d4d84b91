"""Image files to a model's tensor: decoding within bounds, resizing, normalizing.

Pillow decodes. Files come from callers, so what their headers say is checked first, and each is unfolded and shrunk
before the next one is: a batch needs the memory of one large image.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from argosy.core.errors import InvalidInput, PluginError
from argosy.data.image_headers import MAX_IMAGE_BYTES, MAX_PIXELS, check_image
from argosy.data.steps import Array, Arrays, Kernel, PlainStep

# Exif 2.32, tag Orientation: how a stored image is turned upright, by the names of Pillow's transpositions.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
# What Pillow raises for damaged files: its own errors are OSError and SyntaxError, chunk parsers raise the rest.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError)


class DecodeImage(PlainStep, frozen=True, tag="decode-image"):
    """Read JPEG, PNG or WebP files as RGB, 8 bits a channel, upright as their Exif orientation says.

    Grey and CMYK become RGB, 16 bits keep the upper 8, transparency is dropped. Files beyond the bounds, damaged or
    animated ones are refused.
    """

    input: str = "image"
    max_bytes: int = MAX_IMAGE_BYTES
    max_pixels: int = MAX_PIXELS


class ResizeImage(PlainStep, frozen=True, tag="resize-image"):
    """Bring images to `height` x `width`.

    With `shortest_edge`, the shorter side becomes so long, proportions kept, and the middle is cut out; without,
    proportions are not kept. Filters are Pillow's, with smoothing when an image shrinks.
    """

    height: int
    width: int
    input: str = "image"
    shortest_edge: int = 0
    filter: Literal["bilinear", "bicubic"] = "bilinear"


class Normalize(PlainStep, frozen=True, tag="normalize"):
    """(x / 255 - mean) / std per channel, float32, as the model's input `output`: channels first, or last."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input: str = "image"
    output: str = "x"
    layout: Literal["channels-first", "channels-last"] = "channels-first"


class _Picture:
    """A file whose header was checked; its pixels are unfolded when they are asked for, and not kept."""

    def __init__(self, data: bytes, row: int, step: DecodeImage) -> None:
        self.row = row
        self._data = data
        header = check_image(data, max_bytes=step.max_bytes, max_pixels=step.max_pixels, what=f"the image in row {row}")
        self._format = header.format
        self._size = (header.width, header.height)

    def unfolded(self) -> Any:
        """Return it as Pillow's RGB image, upright."""
        from PIL import Image

        try:
            with warnings.catch_warnings():
                # Sizes are bounded by the header's check; other warnings are about metadata nobody reads.
                warnings.simplefilter("ignore")
                opened = Image.open(io.BytesIO(self._data), formats=[self._format])
                if opened.size != self._size:
                    raise ValueError("two sizes are given")
                if self._format != "JPEG" and getattr(opened, "is_animated", False):
                    raise InvalidInput(f"the image in row {self.row} is animated; send a single picture")
                opened.load()
                return _rgb(_upright(opened))
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            raise InvalidInput(
                f"the image in row {self.row} is damaged: {str(error)[:200] or type(error).__name__}",
                hint="send the whole file as it is on disk",
            ) from error


def decode_image(step: DecodeImage) -> Kernel:
    """Return the function of a `DecodeImage` step; its result is unfolded by the step behind it."""
    if step.max_bytes < 1 or step.max_pixels < 1:
        raise ValueError("max_bytes and max_pixels must be at least 1")

    def run(state: Arrays) -> Arrays:
        if step.input not in state:
            raise InvalidInput(
                f"the input '{step.input}' (images) is missing; found: {', '.join(state) or 'none'}", input=step.input
            )
        given = np.asarray(state[step.input])
        if given.ndim != 1 or len(given) == 0:
            raise InvalidInput(
                f"the input '{step.input}' has shape {list(given.shape)}, expected [-1]", input=step.input
            )
        pictures = np.empty(len(given), dtype=object)
        for row, data in enumerate(given.tolist()):
            if not isinstance(data, bytes):
                raise InvalidInput(f"the image in row {row} is no file but {type(data).__name__}", input=step.input)
            pictures[row] = _Picture(data, row, step)
        return {**state, step.input: pictures}

    return run


def need_pillow() -> None:
    """Raise PluginError if Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise PluginError(
            "images need 'pillow', which is not installed; install it with: pip install 'argosy[image]'",
            code="missing_extra",
            module="PIL",
        ) from error


def resize_image(step: ResizeImage) -> Kernel:
    """Return the function of a `ResizeImage` step: uint8 [N, height, width, 3]."""
    if min(step.height, step.width) < 1 or step.height * step.width > MAX_PIXELS:
        raise ValueError(f"a model's image of {step.height} x {step.width} pixels makes no sense")
    if step.shortest_edge and step.shortest_edge < max(step.height, step.width):
        raise ValueError("shortest_edge must be at least the larger of height and width")

    def run(state: Arrays) -> Arrays:
        pictures = state[step.input]
        found = np.empty((len(pictures), step.height, step.width, 3), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            found[row] = np.asarray(_resized(picture.unfolded(), step, row))
        return {**state, step.input: found}

    return run


def _resized(image: Any, step: ResizeImage, row: int) -> Any:
    from PIL import Image

    method = Image.Resampling[step.filter.upper()]
    if not step.shortest_edge:
        return image.resize((step.width, step.height), method)
    width, height = image.size
    short = min(width, height)
    # torchvision's arithmetic, `Resize` and `CenterCrop`, so that models see what they were trained on.
    size = (
        step.shortest_edge if width == short else int(step.shortest_edge * width / height),
        step.shortest_edge if height == short else int(step.shortest_edge * height / width),
    )
    if size[0] * size[1] > MAX_PIXELS:
        raise InvalidInput(f"the image in row {row} is too long for its other side: {width} x {height} pixels")
    if size != image.size:
        image = image.resize(size, method)
    left, top = round((size[0] - step.width) / 2.0), round((size[1] - step.height) / 2.0)
    return image.crop((left, top, left + step.width, top + step.height))


def normalize(step: Normalize) -> Kernel:
    """Return the function of a `Normalize` step: float32 [N, 3, H, W], or [N, H, W, 3]."""
    if min(step.std) <= 0.0:
        raise ValueError("std must be above 0")
    std = np.array(step.std, dtype=np.float64)
    factor = (1.0 / (255.0 * std)).astype(np.float32)
    offset = (-np.array(step.mean, dtype=np.float64) / std).astype(np.float32)
    is_first = step.layout == "channels-first"
    if is_first:
        factor, offset = factor[:, None, None], offset[:, None, None]

    def run(state: Arrays) -> Arrays:
        images = _pixels(state[step.input])
        if is_first:
            images = images.transpose(0, 3, 1, 2)
        x = np.empty(images.shape, dtype=np.float32)  # in the order of its own dimensions, whatever that of `images` is
        np.multiply(images, factor, out=x, dtype=np.float32)
        x += offset
        kept = {name: array for name, array in state.items() if name != step.input}
        return {**kept, step.output: x}

    return run


def _pixels(images: Array) -> Array:
    """Return images as one array; those that were not resized must be of one size."""
    if images.dtype != object:
        return images
    unfolded = [np.asarray(picture.unfolded()) for picture in images]
    for row, pixels in enumerate(unfolded):
        if pixels.shape != unfolded[0].shape:
            raise InvalidInput(
                f"the image in row {row} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the first one "
                f"{unfolded[0].shape[1]} x {unfolded[0].shape[0]}; send them one by one"
            )
    return np.stack(unfolded)


def _upright(image: Any) -> Any:
    from PIL import Image

    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged metadata raises anything, and the picture is whole without it
        return image
    return image.transpose(Image.Transpose[turn]) if turn else image


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion to 8 bits cuts off instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


IMAGE_KERNELS: dict[type[Any], Callable[[Any], Kernel]] = {
    DecodeImage: decode_image,
    ResizeImage: resize_image,
    Normalize: normalize,
}
"""The function that makes each step's function."""
