"""What people share holds no absolute path and no facts of the machine."""

from __future__ import annotations

import platform

import pytest

from mclip_fairseq.storage.provenance import provenance, shareable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/photos", ".../photos"),
        ("/home/me/photos/", ".../photos"),
        ("~/photos", "~/photos"),
        ("photos/a b", "photos/a b"),
        ("../photos", "../photos"),
        ("de=/data/valid.de", "de=.../valid.de"),
        ("/data/xtd10:valid", ".../xtd10:valid"),
        ("/one/a:/two/b", ".../a:.../b"),
        ("--output=/home/me/runs", "--output=.../runs"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("https://example.org/x", "https://example.org/x"),
        ("s3://bucket/a@b/{0..9}.tar", "s3://bucket/a@b/{0..9}.tar"),
        ("s3://key:secret@bucket/x.tar", "s3://bucket/x.tar"),
        ("file:///home/me/tars/*.tar", "file://.../*.tar"),
        ("--images=file:///home/me/x.tar", "--images=file://.../x.tar"),
        ("/", ".../"),
    ],
)
def test_absolute_paths_lose_their_folders(text: str, shown: str) -> None:
    assert shareable(text) == shown


def test_a_report_tells_neither_paths_nor_the_host() -> None:
    made = provenance(["mclip-evaluate", "--images", "/home/me/my photos"])
    assert made["command"] == "mclip-evaluate --images '.../my photos'"
    assert made["platform"] == f"{platform.system()} {platform.machine()}"
    assert platform.release() not in str(made)
