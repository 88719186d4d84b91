import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.core.errors import InvalidInput
from argosy.data.image_headers import MAX_IMAGE_BYTES, MAX_PIXELS, check_image
from pictures import HOSTILE, encoded, jpeg_of, pixels, png, webp_of

KINDS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"exif": b"Exif\0\0" + b"x" * 5000}),
    ("JPEG", {"comment": "long " * 2000}),
    ("PNG", {}),
    ("PNG", {"mode": "P"}),
    ("PNG", {"mode": "L"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 300), (333, 2)])
def test_the_size_is_what_pillow_wrote(kind, options, height, width):
    found = check_image(encoded(pixels(height, width), kind, **options))
    assert found == (kind, width, height)


@pytest.mark.parametrize(("name", "data", "code"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_hostile_files_are_refused_by_their_first_bytes(name, data, code):
    with pytest.raises(InvalidInput) as caught:
        check_image(data)
    assert caught.value.code == code


def test_bounds_are_inclusive_and_can_be_lower():
    side = int(MAX_PIXELS**0.5)
    assert check_image(png(side, side)).width == side
    with pytest.raises(InvalidInput, match="67108864 are unfolded"):
        check_image(png(side + 1, side))
    data = png(10, 10)
    assert check_image(data, max_pixels=100, max_bytes=len(data))
    for bounds in ({"max_pixels": 99}, {"max_bytes": len(data) - 1}):
        with pytest.raises(InvalidInput) as caught:
            check_image(data, **bounds)
        assert caught.value.code == "image_too_large"
    with pytest.raises(InvalidInput, match="at most 16777216 are read"):
        check_image(b"\xff\xd8\xff" + bytes(MAX_IMAGE_BYTES))


def test_sizes_of_made_up_files_are_read_as_they_stand():
    assert check_image(jpeg_of(640, 480)) == ("JPEG", 640, 480)
    assert check_image(webp_of(640, 480)) == ("WEBP", 640, 480)


def outcome(data):
    """Return the header, or the code of the refusal."""
    try:
        return check_image(data)
    except InvalidInput as error:
        return error.code


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([encoded(pixels(9, 11), kind, **options) for kind, options in KINDS]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.integers(0, 300),
)
def test_any_bytes_are_a_header_within_bounds_or_an_invalid_input(data, changes, end):
    spoilt = bytearray(data)
    for at, byte in changes:
        if at < len(spoilt):
            spoilt[at] = byte
    found = outcome(bytes(spoilt[:end] if end < 250 else spoilt))
    assert found in ("not_an_image", "image_too_large") or 1 <= found.width * found.height <= MAX_PIXELS


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\0\0\0\0WEBPVP8 "]),
    st.binary(max_size=60),
)
def test_any_bytes_behind_a_magic_number_are_read_or_refused(magic, data):
    found = outcome(memoryview(magic + data))
    assert found in ("not_an_image", "image_too_large") or 1 <= found.width * found.height <= MAX_PIXELS


def test_reading_headers_is_linear_in_the_worst_case():
    # A file of 16 MiB of the smallest segments: four bytes each.
    data = b"\xff\xd8" + np.tile(np.frombuffer(b"\xff\xe0\0\2", np.uint8), 1 << 20).tobytes()
    with pytest.raises(InvalidInput):
        check_image(data)
