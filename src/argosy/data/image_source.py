"""A folder of images, one folder per class."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.data.location import IMAGE_SUFFIXES
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.sources import Table

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_MOST_PIXELS = 64 << 20  # of one image: a few kilobytes of PNG can unfold to gigabytes
_MOST_BYTES = 4 << 30  # of all images together where they are held in memory


def read_images(path: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read `path/<class>/*.png|jpg|bmp|webp` into uint8 [N, C, H, W] "image" and the folders' names "label".

    C is 1 when every image is grey, else 3. Images of different sizes need `image_size`: each is then resized to it,
    whatever its own proportions. Raises InvalidInput that names the file.
    """
    files, labels = _listing(path)
    try:
        from PIL import Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error
    sizes = [_size(file) for file in files]
    if image_size:
        width, height = image_size, image_size
    else:
        (width, height) = sizes[0][0]
        for file, (size, _) in zip(files, sizes, strict=True):
            if size != (width, height):
                raise InvalidInput(
                    f"images differ in size: '{_short(files[0], path)}' has {width}x{height} pixels, "
                    f"'{_short(file, path)}' {size[0]}x{size[1]}",
                    hint="set [data] image_size, such as image_size = 64, to resize them",
                )
    mode = "L" if all(grey for _, grey in sizes) else "RGB"
    channels = 1 if mode == "L" else 3
    total = len(files) * channels * width * height
    if total > _MOST_BYTES and not scratch.is_large(total):
        raise InvalidInput(
            f"{len(files)} images of {width}x{height} pixels take {total / 1e9:.1f} GB, more than "
            f"{_MOST_BYTES / 1e9:.1f} GB",
            hint="set a smaller [data] image_size",
        )
    images = scratch.empty((len(files), channels, height, width), np.uint8)
    for row, file in enumerate(files):
        pixels = _pixels(file, mode, (width, height))
        images[row] = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    return Table(columns={"image": images, "label": np.array(labels, dtype=object)}, kind="images", where=path.name)


def _listing(path: Path) -> tuple[list[Path], list[str]]:
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    files: list[Path] = []
    labels: list[str] = []
    for folder in classes:
        found = sorted(_images_in(folder))
        files += found
        labels += [folder.name] * len(found)
    if not files:
        loose = sum(1 for _ in _images_in(path, deep=False))
        raise InvalidInput(
            f"the folder '{path.name}' has no images and no texts in folders of classes"
            + (f"; {loose} images lie in it directly" if loose else ""),
            hint="put them as <class>/<name>.png (PNG, JPEG, BMP and WebP are read) or <class>/<name>.txt",
            path=str(path),
        )
    return files, labels


def _images_in(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return (p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file())


def _short(file: Path, root: Path) -> str:
    return str(file.relative_to(root))


def _open(file: Path) -> Any:
    """Open an image without decoding it; what it says about its size is checked before anything is unfolded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is lower than Pillow's
            image = Image.open(file, formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error
    if image.width * image.height > _MOST_PIXELS:
        image.close()
        raise InvalidInput(
            f"the image '{file.name}' says it has {image.width}x{image.height} pixels; at most {_MOST_PIXELS} are read",
            path=str(file),
        )
    return image


def _size(file: Path) -> tuple[tuple[int, int], bool]:
    """Return width and height as seen upright, and whether the image is grey."""
    with _open(file) as image:
        # Exif 2.32, Orientation: 5 to 8 exchange the sides. Cameras write JPEG; asking a PNG would decode all of it.
        turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = (image.height, image.width) if turned else (image.width, image.height)
        return size, image.mode in ("1", "L", "I;16")


def _pixels(file: Path, mode: str, size: tuple[int, int]) -> Any:
    from PIL import Image, ImageOps

    try:
        with _open(file) as opened:
            image = ImageOps.exif_transpose(opened) if opened.format == "JPEG" else opened
            if image.mode == "I;16":  # Pillow's own conversion to 8 bits cuts off instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert(mode)
            if image.size != size:
                image = image.resize(size, Image.Resampling.BILINEAR)
            return np.asarray(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"'{file.parent.name}/{file.name}' can't be read as an image: {error}",
        hint="remove or repair the file",
        path=str(file),
    )
