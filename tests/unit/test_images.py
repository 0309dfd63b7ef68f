"""Images become what a viewer would show, and what cannot be read says so."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.storage.images import ImageError, find_images, load_image, resolve_image, to_rgb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def grid(*rows: list[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def test_an_ordinary_image(tmp_path: Path) -> None:
    grid([RED, GREEN]).save(tmp_path / "x.png")
    image = load_image(tmp_path / "x.png")
    assert image.mode == "RGB"
    assert pixels(image) == [[RED, GREEN]]
    assert pixels(load_image(str(tmp_path / "x.png"))) == [[RED, GREEN]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    grid([RED, GREEN], [BLUE, WHITE]).save(tmp_path / "x.png", exif=exif)
    assert pixels(load_image(tmp_path / "x.png")) == [[BLUE, RED], [WHITE, GREEN]]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 51)]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert pixels(load_image(tmp_path / "rgba.png")) == [[RED, WHITE, (204, 204, 204)]]
    Image.fromarray(np.array([[(0, 255), (0, 0)]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(load_image(tmp_path / "la.png")) == [[(0, 0, 0), WHITE]]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_transparency_is_laid_on_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    image.save(tmp_path / f"x.{suffix}", transparency=1)
    assert pixels(load_image(tmp_path / f"x.{suffix}")) == [[RED, WHITE]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 255]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert [pixel[0] for pixel in pixels(load_image(tmp_path / "x.png"))[0]] == [0, 1, 128, 255, 1]


def test_cmyk_grey_and_one_bit(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    assert np.abs(np.asarray(load_image(tmp_path / "x.jpg")).astype(int) - RED).max() <= 3
    assert pixels(to_rgb(Image.new("L", (1, 1), 7))) == [[(7, 7, 7)]]
    assert pixels(to_rgb(Image.new("1", (1, 1), 1))) == [[WHITE]]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixels(load_image(tmp_path / "x.gif"))[0][0] == RED


def test_floats_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ImageError, match="floating point pixels"):
        load_image(tmp_path / "x.tiff")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_header_is_enough_to_refuse_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_header(12_000, 9_000))
    with pytest.raises(ImageError, match="has 12000 x 9000 pixels, more than"):
        load_image(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(png_header(2_000_000, 2_000_000))
    with pytest.raises(ImageError, match="pixels"):
        load_image(tmp_path / "y.png")
    grid([RED, RED]).save(tmp_path / "z.png")
    with pytest.raises(ImageError, match="has 2 x 1 pixels, more than 1;"):
        load_image(tmp_path / "z.png", max_pixels=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    load_image(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(path) not in caught.value.reason


def test_files_that_are_not_images(tmp_path: Path) -> None:
    for data in (b"", b"<html>404</html>"):
        (tmp_path / "x.jpg").write_bytes(data)
        with pytest.raises(ImageError, match="is not an image in a known format"):
            load_image(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="does not exist"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="is not an ordinary file"):
        load_image(tmp_path)


def test_ids_stay_below_the_root(tmp_path: Path) -> None:
    assert resolve_image(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    for name in ("/etc/passwd", "../x.jpg", "a/../../x.jpg"):
        with pytest.raises(ValueError, match="leaves the folder"):
            resolve_image(tmp_path, name)


def test_a_folder_is_searched_below_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "ä ö.webp", "notes.txt", "b/c/3.gif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    found = find_images(tmp_path / "in").images
    assert [name for name, _ in found] == ["a.jpeg", "b/1.png", "b/2.JPG", "b/c/3.gif", "ä ö.webp"]
    assert all(path == tmp_path / "in" / name for name, path in found)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "photos").symlink_to(tmp_path / "in" / "b")
    assert [name for name, _ in find_images(tmp_path / "linked").images] == [
        "photos/1.png",
        "photos/2.JPG",
        "photos/c/3.gif",
    ]


def test_a_list_keeps_its_order(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("b.jpg\none\tsub/a.jpg\n/abs/c.jpg\r\n", encoding="utf-8")
    expected = [("b.jpg", "b.jpg"), ("one", "sub/a.jpg"), ("/abs/c.jpg", "/abs/c.jpg")]
    assert find_images(None, listed).images == [(name, tmp_path / path) for name, path in expected]
    assert find_images("/photos", listed).images[1] == ("one", Path("/photos/sub/a.jpg"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\nb\na\n", "line 3: the id 'a' is already on line 1"),
        ("a\n\nb\n", "line 2: names no image"),
        ("a\t\n", "line 1: names no image"),
        ("\ta.jpg\n", "line 1: names no image"),
        ("", "lists no images"),
    ],
)
def test_a_list_with_mistakes_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(ValueError, match=reason):
        find_images(None, tmp_path / "list")


def test_nothing_to_find_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="is neither a folder of images nor a list"):
        find_images(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot be read"):
        find_images(None, tmp_path / "none")


def test_an_open_file_is_read_and_named_as_the_image() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(stream, "PNG")
    stream.seek(0)
    assert load_image(stream).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(ImageError, match=r"^the image: is not an image"):
        load_image(io.BytesIO(b"nothing"))


def test_a_jpeg_is_decoded_no_larger_than_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 800), (200, 10, 10)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").size == (1600, 800)
    assert load_image(tmp_path / "a.jpg", near=200).size == (400, 200)  # neither edge falls below
