"""Folders of images as people have them: what is an image, what is left out, and which names cannot be ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.storage import folders
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.folders import READS_AVIF, list_folder
from mclip_fairseq.storage.images import ImageError, find_images, load_image


def touch(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def ids(root: Path, hidden: bool = False) -> list[str]:
    return [name for name, _ in list_folder(root, hidden).images]


@pytest.mark.parametrize(
    ("name", "format"), [("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.avif", "AVIF"), ("avif.jpg", "AVIF")]
)
def test_all_endings_that_can_be_read_are_images(tmp_path: Path, name: str, format: str) -> None:
    if format == "AVIF" and not READS_AVIF:
        pytest.skip("this Pillow reads no AVIF")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / name, format)
    assert ids(tmp_path) == [name]
    red, green, _ = load_image(tmp_path / name).getpixel((4, 4))  # type: ignore[misc]
    assert red > 150 > green


def test_other_endings_are_counted_and_named(tmp_path: Path) -> None:
    listing = list_folder(touch(tmp_path, "a.jpg", "b.JXL", "c.jxl", "d.jp2", "README", ".DS_Store"))
    assert listing.endings == {".jxl": 2, ".jp2": 1, "": 1}
    assert listing.notes(tmp_path) == [
        f"{tmp_path}: 4 files with endings that are not read (.jxl 2, .jp2 1, none 1) are left out"
    ]


def test_without_its_extra_heic_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SUFFIXES", (".jpg",))
    monkeypatch.setattr(folders, "READS_HEIC", False)
    (note,) = list_folder(touch(tmp_path, "a.HEIC")).notes(tmp_path)
    assert "(.heic 1) are left out" in note
    assert "mclip_fairseq[heic]" in note


def test_heic_is_read_with_the_extra(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (200, 10, 10))).save(tmp_path / "a.HEIC")
    assert ids(tmp_path) == ["a.HEIC"]
    red, green, _ = load_image(tmp_path / "a.HEIC").getpixel((4, 4))  # type: ignore[misc]
    assert red > 150 > green


def test_what_systems_leave_beside_photos_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    rubbish = ["._a.jpg", ".Trashes/501/gone.jpg", ".thumbnails/t.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg"]
    touch(tmp_path, *rubbish, "#recycle/r.jpg", "sub/$RECYCLE.BIN/x.jpg", "sub/@eaDir/b.jpg/THUMB.jpg")
    listing = list_folder(tmp_path)
    assert [name for name, _ in listing.images] == ["a.jpg", "sub/b.jpg"]
    assert listing.hidden == 7
    assert listing.notes(tmp_path) == [
        f"{tmp_path}: 7 hidden images and images of bins and thumbnail folders are left out; --hidden takes them in"
    ]
    assert len(ids(tmp_path, hidden=True)) == 9


def test_a_hidden_folder_can_be_named(tmp_path: Path) -> None:
    assert ids(touch(tmp_path / ".photos", "a.jpg")) == ["a.jpg"]


AWKWARD = {
    b"caf\xe9.jpg": ("caf\\xe9.jpg", "its name is not UTF-8"),
    b" lead.jpg": (" lead.jpg", "its name begins or ends with a space"),
    b"\xc2\xa0nbsp.jpg": ("\\xa0nbsp.jpg", "its name begins or ends with a space"),
    b"new\nline.jpg": ("new\\nline.jpg", "its name has a tab or a line break"),
    b"tab\there.jpg": ("tab\\there.jpg", "its name has a tab or a line break"),
    b"cr\r.jpg": ("cr\\r.jpg", "its name has a tab or a line break"),
    b"s\xe2\x80\xa8ep.jpg": ("s\\u2028ep.jpg", "its name has a tab or a line break"),
    b"d\xff/x.jpg": ("d\\xff/x.jpg", "its name is not UTF-8"),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_name_costs_one_line(tmp_path: Path, name: bytes) -> None:
    shown, reason = AWKWARD[name]
    listing = list_folder(touch(tmp_path, "ok.jpg", name))
    assert [name for name, _ in listing.images] == ["ok.jpg"]
    with pytest.raises(UserError) as caught:
        listing.check_names(tmp_path, None)
    assert str(caught.value) == f"{tmp_path}/{shown}: {reason}; rename it, or leave it out with --skip-budget 1"
    assert listing.check_names(tmp_path, 3) == 2
    assert listing.skipped(tmp_path) == [f"{tmp_path}/{shown}: {reason}; it is left out"]


def test_all_awkward_names_are_listed_at_once(tmp_path: Path) -> None:
    listing = list_folder(touch(tmp_path, "ok.jpg", *AWKWARD))
    with pytest.raises(UserError) as caught:
        listing.check_names(tmp_path, 7)
    lines = str(caught.value).split("\n")
    assert lines[0].endswith(
        "8 images have names that cannot be ids; rename them, or leave them out with --skip-budget 8:"
    )
    assert sorted(lines[1:]) == sorted(f"  {shown}: {reason}" for shown, reason in AWKWARD.values())


def test_ids_do_not_depend_on_the_order_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path / "root", "m/1.jpg", "m/n/2.jpg", "z.jpg")
    outside = touch(tmp_path / "outside", "3.jpg", "deep/4.jpg")
    (root / "a").symlink_to(root / "m")
    (root / "back").symlink_to(root)
    for name in ("second", "first"):
        (root / name).symlink_to(outside)
    (outside / "home").symlink_to(root / "m")
    expected = ["first/3.jpg", "first/deep/4.jpg", "m/1.jpg", "m/n/2.jpg", "z.jpg"]
    scan = os.scandir

    class Ordered:
        def __init__(self, path: str, key: Callable[[os.DirEntry[str]], str], reverse: bool) -> None:
            with scan(path) as entries:
                self.entries = iter(sorted(entries, key=key, reverse=reverse))

        def __enter__(self) -> Ordered:
            return self

        def __exit__(self, *error: object) -> None: ...

        def __iter__(self) -> Ordered:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

        def close(self) -> None: ...

    for reverse in (False, True):
        monkeypatch.setattr(os, "scandir", lambda path, r=reverse: Ordered(path, lambda e: e.name, r))
        assert ids(root) == expected


def test_a_folder_without_readable_images_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no images .*1 files with endings that are not read \(\.jxl 1\)"):
        find_images(touch(tmp_path, "a.jxl"))


@pytest.mark.parametrize("value", [200, 1_500_000_000])
def test_32_bit_integers_have_no_known_range(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.full((2, 2), value, dtype=np.int32)).save(tmp_path / "x.tiff")
    with pytest.raises(ImageError, match="32-bit integer pixels have no known range"):
        load_image(tmp_path / "x.tiff")


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + bytes([255, 255, 128, 128]))
    Image.fromarray(np.array([[65535, 128 * 257]], dtype=np.uint16)).save(tmp_path / "x.tiff")
    for name in ("x.pgm", "x.tiff"):
        assert [load_image(tmp_path / name).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (128,) * 3]
