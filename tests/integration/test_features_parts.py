"""`mclip-features` on webdataset tars and Parquet files: the rows of the same images and captions in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli.features import main
from mclip_fairseq.storage.features import FeatureStore
from tests.noise_photos import write_photos
from tests.tars import split_tars, write_tar

fsspec = pytest.importorskip("fsspec", reason="needs the extra scale")
NUMBER = 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), NUMBER)


def run(clip: Path, output: Path, *more: object, status: int = 0) -> None:
    """The command in this process, on the CPU."""
    line = ["--model", clip, "--output", output, "--batch-size", 3, "--workers", 0, "--device", "cpu", *more]
    assert main(list(map(str, line))) == status


def rows(folder: Path) -> dict[str, list[float]]:
    """Id without ending -> row."""
    store = FeatureStore.open(folder)
    taken = store.take(range(len(store)))
    return {name.removesuffix(".png"): row.tolist() for name, row in zip(store.ids, taken, strict=True)}


@pytest.fixture(scope="module")
def plain(clip: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plain") / "features"
    run(clip, output, "--images", photos, "--shard-rows", 3)
    return output


@pytest.fixture
def tars(photos: Path, tmp_path: Path) -> list[Path]:
    return split_tars(
        photos,
        tmp_path / "tars",
        3,
        {f"{prefix}{n:02d}.png": f"photo {n}" for n in range(NUMBER) for prefix in ("", "a b/")},
    )


def test_rows_of_tars_are_those_of_the_files(clip: Path, plain: Path, tars: list[Path], tmp_path: Path) -> None:
    run(clip, tmp_path / "out", "--images", tmp_path / "tars" / "*.tar")
    assert rows(tmp_path / "out") == rows(plain)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 1]
    run(clip, tmp_path / "braces", "--images", tmp_path / "tars" / "{00000..00002}.tar")
    assert (tmp_path / "braces" / "ids.txt").read_bytes() == (tmp_path / "out" / "ids.txt").read_bytes()


def test_tars_of_another_file_system(clip: Path, plain: Path, tars: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for tar in tars:
        memory.pipe(f"/photos/{tar.name}", tar.read_bytes())
    run(clip, tmp_path / "out", "--images", "memory://photos/*.tar")
    assert rows(tmp_path / "out") == rows(plain)


def test_a_finished_part_is_kept(
    clip: Path, plain: Path, tars: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclip_fairseq.encoding import parts

    read, seen = parts.read_part, list[str]()

    def dies_at_the_second(part: str, *more: object) -> object:
        seen.append(Path(part).stem)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return read(part, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "read_part", dies_at_the_second)
    run(clip, tmp_path / "out", "--images", tmp_path / "tars" / "*.tar", status=130)
    run(clip, tmp_path / "out", "--images", tmp_path / "tars" / "*.tar")
    assert seen == ["00000", "00001", "00001", "00002"]
    assert rows(tmp_path / "out") == rows(plain)


def test_two_machines_share_the_tars(
    clip: Path, plain: Path, tars: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--images", tmp_path / "tars" / "*.tar", "--machines", 2]
    run(clip, tmp_path / "out", *shared, "--machine", 1)
    assert capsys.readouterr().out.endswith("2 of 3 shards are left to other machines\n")
    run(clip, tmp_path / "out", *shared, "--machine", 0)
    assert rows(tmp_path / "out") == rows(plain)


def test_a_changed_tar_is_noticed(
    clip: Path, tars: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clip, tmp_path / "out", "--images", tmp_path / "tars" / "*.tar")
    write_tar(tars[1], {"x.png": b"nothing"})
    run(clip, tmp_path / "out", "--images", tmp_path / "tars" / "*.tar", status=2)
    assert "was started with a different content of the inputs" in capsys.readouterr().err


def test_captions_of_tars_and_parquet(clip: Path, tars: list[Path], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra scale")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra scale")
    run(clip, tmp_path / "tar", "--captions", tmp_path / "tars" / "*.tar")
    expected = rows(tmp_path / "tar")
    assert set(expected) == {f"{'a b/' if n % 2 else ''}{n:02d}" for n in range(NUMBER)}
    lines = [f"{name}\tphoto {int(name[-2:])}" for name in expected]
    (tmp_path / "list.tsv").write_text("\n".join(lines) + "\n")
    run(clip, tmp_path / "list", "--captions", tmp_path / "list.tsv", "--shard-rows", 3)
    assert rows(tmp_path / "list") == expected
    table = pyarrow.table({"name": list(expected), "words": [f"photo {int(name[-2:])}" for name in expected]})
    parquet.write_table(table, tmp_path / "words.parquet")
    run(clip, tmp_path / "pq", "--captions", tmp_path / "words.parquet", "--column", "words", "--id-column", "name")
    close = rows(tmp_path / "pq")
    for name, row in expected.items():  # other batches
        np.testing.assert_allclose(close[name], row, atol=2e-3)


def test_rows_go_into_parquet_files(clip: Path, plain: Path, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra scale")
    command = (clip, plain, "--images", photos, "--shard-rows", 3, "--parquet", tmp_path / "tables")
    run(*command)
    (tmp_path / "tables" / "features-00001.parquet").write_bytes(b"cut off")
    kept = (tmp_path / "tables" / "features-00000.parquet").stat().st_mtime_ns
    run(*command)
    assert (tmp_path / "tables" / "features-00000.parquet").stat().st_mtime_ns == kept
    tables = [parquet.read_table(file) for file in sorted((tmp_path / "tables").iterdir())]
    assert [len(table) for table in tables] == [3, 3, 1]
    read = {row["id"].removesuffix(".png"): row["vector"] for table in tables for row in table.to_pylist()}
    assert read == rows(plain)


def test_keys_that_two_tars_have_name_their_tar(clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0.png": png(), "1.png": png() if name == "a" else b"no image"})
    run(clip, tmp_path / "out", "--images", tmp_path / "*.tar", "--skip-budget", 1)
    assert FeatureStore.open(tmp_path / "out").ids == ["a/0", "a/1", "b/0"]


def test_images_of_parquet(clip: Path, plain: Path, photos: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra scale")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra scale")
    files = sorted(photos.rglob("*.png"))
    ids = [file.relative_to(photos).as_posix() for file in files]
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]  # as the datasets library stores them
    parquet.write_table(pyarrow.table({"image": images, "id": ids}), tmp_path / "photos.parquet")
    run(clip, tmp_path / "out", "--images", tmp_path / "photos.parquet")
    assert rows(tmp_path / "out") == rows(plain)
    parquet.write_table(pyarrow.table({"jpg": [image["bytes"] for image in images]}), tmp_path / "bare.parquet")
    run(clip, tmp_path / "bare", "--images", tmp_path / "bare.parquet")
    assert list(rows(tmp_path / "bare").values()) == list(rows(plain).values())
    assert list(rows(tmp_path / "bare"))[:2] == ["bare/0", "bare/1"]


def test_the_budget_is_that_of_all_parts(
    clip: Path, tars: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        write_tar(tars[number], {f"bad{number}.png": b"no image", f"{number}.png": png()})
    pattern = tmp_path / "tars" / "*.tar"
    run(clip, tmp_path / "out", "--images", pattern, status=2)
    message = capsys.readouterr().err
    assert "2 of 5 inputs cannot be read; fix them, remove them, or skip them with --skip-budget 2:" in message
    run(clip, tmp_path / "out", "--images", pattern, "--skip-budget", 1, status=2)
    assert (
        "more than --skip-budget 1 inputs cannot be read (0 were skipped before), stopped at:"
        in capsys.readouterr().err
    )
    run(clip, tmp_path / "out", "--images", pattern, "--skip-budget", 2)
    assert capsys.readouterr().out.endswith("3 rows of 16 columns, 2 skipped\n")
    assert [line.split("\t")[0] for line in (tmp_path / "out" / "skipped.tsv").read_text().splitlines()] == [
        "bad0",
        "bad1",
    ]


def png() -> bytes:
    """A small image."""
    import io

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def bad_parts(tmp_path: Path) -> Path:
    write_tar(tmp_path / "empty.tar", {"x.json": b"{}"})
    write_tar(tmp_path / "twice.tar", {"x.png": png(), "x.jpg": png()})
    write_tar(tmp_path / "latin.tar", {"x.txt": b"\xff"})
    write_tar(tmp_path / "space.tar", {"x .png": png()})
    (tmp_path / "thrift.parquet").write_bytes(b"PAR1" + b"\xff" * 99 + (99).to_bytes(4, "little") + b"PAR1")
    whole = write_tar(tmp_path / "cut.tar", {"x.png": png() * 20, "y.png": png() * 20}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 4])
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    (tmp_path / "no.parquet").write_bytes(b"x" * 2000)
    write_tar(tmp_path / "b" / "empty.tar", {"x.json": b"{}"})
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (("--images", "{}/empty.tar"), "empty.tar: holds no images"),
        (("--captions", "{}/empty.tar"), "empty.tar: holds no captions (KEY.txt)"),
        (("--images", "{}/twice.tar"), "twice.tar: the id 'x' appears twice"),
        (("--captions", "{}/latin.tar"), "latin.tar, x.txt: is not UTF-8"),
        (("--images", "{}/space.tar"), "space.tar, 'x ': its name begins or ends with a space"),
        (("--images", "{}/cut.tar"), "cut.tar: is not a tar, or is truncated"),
        (("--images", "{}/no.tar"), "no.tar: is not a tar, or is truncated"),
        (("--images", "{}/no.parquet"), "no.parquet: is not a readable Parquet file"),
        (("--images", "{}/thrift.parquet"), "thrift.parquet: is not a readable Parquet file"),
        (("--images", "{}/nothing*.tar"), "nothing*.tar: no such files"),
        (("--images", "{}/nothing.tar"), "nothing.tar: no such files"),
        (("--images", "{}/**/empty.tar"), "has the same name as"),
        (("--images", "nix://x.tar"), "nix://x.tar: cannot be read: ValueError: Protocol not known"),
        (("--images", "{}/empty.tar", "--root", "{}"), "--root is for folders and lists"),
        (("--images", "{}/empty.tar", "--shard-rows", "3"), "--shard-rows is for folders and lists"),
        (("--images", "{}/empty.tar", "--column", "x"), "--column and --id-column are for Parquet files"),
        (("--images", "{}", "--column", "x"), "--column and --id-column are for Parquet files"),
    ],
)
def test_bad_parts_are_refused(
    inputs: tuple[str, ...], message: str, clip: Path, bad_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clip, bad_parts / "out", *(word.replace("{}", str(bad_parts)) for word in inputs), status=2)
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
