import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from argosy.core.errors import InvalidInput, PluginError
from argosy.data.images import DecodeImage, Normalize, ResizeImage
from argosy.data.prepare import preparation, steps_from_plain, steps_to_plain
from pictures import HOSTILE, chunk, encoded, pixels, png

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def run(*files, resize=None, normalize=PLAIN, decode=None):
    steps = [DecodeImage(**(decode or {}))]
    steps += [ResizeImage(**resize)] if resize else []
    steps += [Normalize(**normalize)]
    rows = np.empty(len(files), dtype=object)
    rows[:] = files
    found = preparation(steps)({"image": rows})
    assert list(found) == ["x"]
    return found["x"]


def seen(file, **changes):
    """Return the bytes of RGB the model sees: [height, width, 3]."""
    return np.rint(run(file, **changes)[0].transpose(1, 2, 0) * 255).astype(np.uint8)


def test_a_png_is_seen_pixel_by_pixel():
    array = pixels()
    assert np.array_equal(seen(encoded(array)), array)


@pytest.mark.parametrize("options", [{"quality": 100, "subsampling": 0}, {"quality": 95, "progressive": True}])
def test_a_jpeg_is_seen_as_pillow_decodes_it(options):
    file = encoded(pixels(), "JPEG", **options)
    assert np.array_equal(seen(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_is_seen_as_pillow_decodes_it(lossless):
    file = encoded(pixels(), "WEBP", lossless=lossless)
    assert np.array_equal(seen(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(kind, orientation):
    # Two pixels wide, a white one top left: where it is afterwards is the orientation.
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = seen(encoded(array, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    assert found.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    # Exif 2.32, Orientation: where row 0 and column 0 of the stored image are seen.
    bottom = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    corner = found[-4 if bottom else 3, -4 if right else 3]
    assert corner.min() > 200
    assert found[3 if bottom else -4, 3 if right else -4].max() < 60


def test_damaged_exif_is_no_reason_to_refuse_a_whole_picture():
    array = pixels()
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        found = seen(encoded(array, "JPEG", exif=exif, quality=100, subsampling=0))
        assert np.abs(found.astype(int) - array).max() < 12


def test_grey_cmyk_palette_transparent_and_bilevel_images_become_rgb():
    array = pixels()
    grey = np.asarray(Image.fromarray(array).convert("L"))
    assert np.array_equal(seen(encoded(array, mode="L")), np.repeat(grey[:, :, None], 3, axis=2))
    assert seen(encoded(array, mode="1")).shape == array.shape
    for mode in ("P", "RGBA", "LA"):
        file = encoded(array, mode=mode)
        assert np.array_equal(seen(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))), mode
    cmyk = encoded(array, "JPEG", mode="CMYK", quality=100)
    assert np.abs(seen(cmyk).astype(int) - array).max() < 12


def test_transparency_is_dropped_and_a_palette_with_it_is_read_without_a_warning():
    array = np.zeros((4, 4, 4), dtype=np.uint8)
    array[:, :, 0] = 200
    assert (seen(encoded(array))[:, :, 0] == 200).all()
    file = encoded(pixels(), mode="P", transparency=b"\0" * 256)
    assert seen(file).shape == (20, 30, 3)


def test_sixteen_bits_of_grey_keep_their_upper_eight():
    array = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert seen(encoded(array))[0, :, 0].tolist() == [0, 0, 1, 0x80, 0xFF]


def test_sixteen_bits_of_colour_keep_their_upper_eight():
    row = b"\0" + b"".join(value.to_bytes(2, "big") for value in (0x0102, 0x8000, 0xFFFF))
    assert seen(png(1, 1, row, depth=16)).tolist() == [[[1, 0x80, 0xFF]]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_off_anywhere_is_refused_or_whole(kind):
    file = encoded(pixels(64, 64), kind, **({"quality": 90} if kind != "PNG" else {}))
    whole = run(file)
    refused = []
    for end in range(0, len(file), max(1, len(file) // 60)):
        try:
            found = run(file[:end])
        except InvalidInput as error:
            refused.append(error)
        else:
            # What follows the pixels may be missing.
            assert np.array_equal(found, whole)
    assert len(refused) >= 50
    assert {error.code for error in refused} <= {"not_an_image", "invalid_input"}
    assert all("row 0" in error.message for error in refused)


@pytest.mark.parametrize(("name", "data", "code"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_hostile_files_are_refused_before_they_are_unfolded(name, data, code):
    with pytest.raises(InvalidInput) as caught:
        run(encoded(pixels()), data)
    assert caught.value.code == code
    assert "row 1" in caught.value.message


def test_damage_behind_a_good_header_is_refused():
    good = bytearray(encoded(pixels(200, 200), "JPEG"))
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(60):
        spoilt = bytearray(good)
        for at in rng.integers(30, len(good), 20):
            spoilt[at] = rng.integers(0, 256)
        try:
            outcomes.add(run(bytes(spoilt)).shape)
        except InvalidInput:
            outcomes.add("refused")
    assert "refused" in outcomes
    png_file = encoded(pixels())
    for broken in (
        png_file.replace(b"IDAT", b"IDAX"),
        png(30, 20, b"short"),
        png(30, 20, depth=3),
        png(30, 20, colour=7),
    ):
        with pytest.raises(InvalidInput, match="damaged"):
            run(broken)


def test_a_header_that_another_one_contradicts_is_refused():
    # Two frames: the size that was checked must be the size that is unfolded.
    small, large = encoded(pixels(8, 8), "PNG"), encoded(pixels(900, 900), "PNG")
    head = small[:8]
    both = head + large[8:33] + small[8:]
    with pytest.raises(InvalidInput):
        run(both, decode={"max_pixels": 900 * 900})


def test_animations_are_refused():
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    for kind in ("WEBP", "PNG"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(InvalidInput, match="animated"):
            run(stream.getvalue())


def test_a_phones_jpeg_with_a_second_picture_inside_is_read_as_its_first():
    array = pixels()
    stream = io.BytesIO()
    first, second = Image.fromarray(array), Image.fromarray(pixels(seed=5))
    first.save(stream, "MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
    assert np.abs(seen(stream.getvalue()).astype(int) - array).max() < 12


def test_a_text_chunk_that_unfolds_to_a_gigabyte_is_no_harm():
    import zlib

    file = encoded(pixels())
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * (1 << 26)))
    try:
        found = run(file[:33] + bomb + file[33:])
    except InvalidInput:
        return
    assert found.shape == (1, 3, 20, 30)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 33), (32, 32), (500, 40)])
def test_resizing_is_pillows_with_torchvisions_arithmetic(filter, height, width):  # noqa: A002 - the step's own word
    array = pixels(height, width)
    method = getattr(Image.Resampling, filter.upper())
    wanted = Image.fromarray(array)
    # torchvision.transforms.functional.resize with an int: the shorter side, the longer one cut to an integer.
    sides = (36, int(36 * height / width)) if width <= height else (int(36 * width / height), 36)
    wanted = wanted.resize(sides, method) if sides != wanted.size else wanted
    top, left = round((sides[1] - 32) / 2.0), round((sides[0] - 24) / 2.0)
    wanted = np.asarray(wanted.crop((left, top, left + 24, top + 32)))
    found = seen(encoded(array), resize={"shortest_edge": 36, "height": 32, "width": 24, "filter": filter})
    assert np.array_equal(found, wanted)


def test_without_a_shortest_edge_the_whole_image_is_stretched():
    array = pixels(40, 60)
    wanted = np.asarray(Image.fromarray(array).resize((24, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(seen(encoded(array), resize={"height": 32, "width": 24}), wanted)


def test_an_image_of_a_million_by_one_is_refused_and_not_blown_up():
    strip = encoded(np.zeros((1, 60_000, 3), dtype=np.uint8))
    with pytest.raises(InvalidInput, match="too long for its other side"):
        run(strip, resize={"shortest_edge": 256, "height": 224, "width": 224})
    assert run(strip, resize={"height": 8, "width": 8}).shape == (1, 3, 8, 8)


def test_normalizing_is_x_over_255_less_the_mean_by_the_deviation():
    array = pixels()
    found = run(encoded(array), normalize=IMAGENET)[0]
    wanted = (array / 255.0 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), rtol=0, atol=2e-6)
    last = run(encoded(array), normalize=IMAGENET | {"layout": "channels-last"})[0]
    np.testing.assert_allclose(last, wanted, rtol=0, atol=2e-6)


def test_images_of_different_sizes_share_a_batch_when_they_are_resized_and_else_do_not():
    files = [encoded(pixels(20, 30)), encoded(pixels(50, 20), "JPEG")]
    assert run(*files, resize={"height": 8, "width": 8}).shape == (2, 3, 8, 8)
    with pytest.raises(InvalidInput, match="row 1 has 20 x 50 pixels, the first one 30 x 20"):
        run(*files)


def test_bounds_of_the_step_count():
    file = encoded(pixels())
    for decode in ({"max_pixels": 599}, {"max_bytes": len(file) - 1}):
        with pytest.raises(InvalidInput) as caught:
            run(file, decode=decode)
        assert caught.value.code == "image_too_large"
    assert run(file, decode={"max_pixels": 600, "max_bytes": len(file)}).shape == (1, 3, 20, 30)


@pytest.mark.parametrize(
    "step",
    [
        ResizeImage(height=0, width=4),
        ResizeImage(height=1 << 20, width=1 << 20),
        ResizeImage(height=32, width=24, shortest_edge=30),
        Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 0.0, 1.0)),
        DecodeImage(max_pixels=0),
    ],
)
def test_steps_that_make_no_sense_are_refused_with_the_manifest(step):
    with pytest.raises(InvalidInput, match="prepare steps are not understood"):
        steps_from_plain(steps_to_plain([step]))


def test_image_steps_survive_json():
    steps = [DecodeImage(), ResizeImage(height=2, width=3, shortest_edge=4, filter="bicubic"), Normalize(**IMAGENET)]
    assert steps_from_plain(json.loads(json.dumps(steps_to_plain(steps)))) == steps


def test_what_is_no_file_and_what_is_missing_is_refused():
    with pytest.raises(InvalidInput, match="no file but int"):
        run(7)
    with pytest.raises(InvalidInput, match=r"shape \[1, 1\]"):
        preparation([DecodeImage()])({"image": np.array([[b"x"]], dtype=object)})
    with pytest.raises(InvalidInput, match="missing; found: other"):
        preparation([DecodeImage()])({"other": np.array([b"x"], dtype=object)})


def test_without_the_library_the_error_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PluginError, match=r"pip install 'argosy\[image\]'"):
        preparation([DecodeImage()])
