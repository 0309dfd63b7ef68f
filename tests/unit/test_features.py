"""Feature directories: rows come back as written, and whatever is not whole is refused with its name."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mclip_fairseq.storage import feature_checks, files, verified
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore, FeatureWriter, write_features

ROWS, DIM = 10, 3
IDS = [f"photos/bäum {number}.jpg" for number in range(ROWS)]
ARRAY = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM) / 8


def make(path: Path, ids: list[str] = IDS, array: npt.ArrayLike = ARRAY, **options: Any) -> FeatureStore:
    settings: dict[str, Any] = {"model": "clip", "normalized": False, "shard_rows": 4}
    return write_features(path, ids, array, **(settings | options))


def writer(path: Path, **options: Any) -> FeatureWriter:
    settings: dict[str, Any] = {"teacher": {"name": "clip"}, "dim": DIM, "modality": "image", "normalized": False}
    return FeatureWriter(path, IDS, **(settings | {"dtype": "float32", "shard_rows": 4} | options))


def edit_manifest(path: Path, **changes: Any) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    make(tmp_path)
    store = FeatureStore.open(tmp_path)
    assert (len(store), store.dim, store.dtype, store.ids) == (ROWS, DIM, np.dtype(np.float32), IDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"features-0000{shard}.npy" for shard in range(3)),
        "ids.txt",
        "manifest.json",
    ]
    np.testing.assert_array_equal(store.take(range(ROWS)), ARRAY)
    np.testing.assert_array_equal(store.rows([IDS[7], IDS[0], IDS[7]]), [7, 0, 7])
    assert store.take([]).shape == (0, DIM)
    assert store.rows([]).dtype == np.int64


@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=30))
def test_take_keeps_any_order_and_repetition(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "shared_store"
    store = make(folder)
    expected = np.array([[ARRAY[row, column] for column in range(DIM)] for row in rows]).reshape(-1, DIM)
    np.testing.assert_array_equal(store.take(rows), expected)


@pytest.mark.parametrize("rows", [[-1], [ROWS], [0, 99]])
def test_rows_that_do_not_exist_are_refused(tmp_path: Path, rows: list[int]) -> None:
    with pytest.raises(ValueError, match="rows must lie in"):
        make(tmp_path).take(rows)


def test_float16_stays_and_anything_else_becomes_float32(tmp_path: Path) -> None:
    assert make(tmp_path / "half", array=ARRAY.astype(np.float16)).dtype == np.float16
    assert make(tmp_path / "double", array=ARRAY.astype(np.float64)).dtype == np.float32


def test_unknown_ids_are_named_and_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no features for 2 of 3 ids, the first are 'x', 'y'"):
        make(tmp_path).rows(["x", IDS[0], "y"])
    with pytest.raises(ValueError, match=r"first are 'photos/BÄUM 1.jpg' \(but 'photos/b\\xe4um 1.jpg' exists, "):
        FeatureStore.open(tmp_path).rows(["photos/BÄUM 1.jpg", "photos/BÄUM 1.jpg"])


def test_shards_are_mapped_not_read(tmp_path: Path) -> None:
    make(tmp_path)
    assert all(isinstance(shard, np.memmap) for shard in FeatureStore.open(tmp_path)._shards)


def test_other_processes_open_the_same_files(tmp_path: Path) -> None:
    store = make(tmp_path, array=np.zeros((ROWS, DIM)))
    data = pickle.dumps(store)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).take([3]), store.take([3]))


def delete_shard(path: Path) -> None:
    (path / "features-00001.npy").unlink()


def flip_a_byte(path: Path) -> None:
    file = path / "features-00001.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate_shard(path: Path) -> None:
    file = path / "features-00001.npy"
    file.write_bytes(file.read_bytes()[:-4])


def change_an_id(path: Path) -> None:
    file = path / "ids.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("bäum 3", "bäum 4"), encoding="utf-8")


def delete_ids(path: Path) -> None:
    (path / "ids.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (delete_shard, "features-00001.npy: is missing"),
        (flip_a_byte, "features-00001.npy: is altered"),
        (truncate_shard, "features-00001.npy: is altered or truncated"),
        (change_an_id, "ids.txt: is altered"),
        (delete_ids, "ids.txt: is missing"),
        (lambda path: edit_manifest(path, version=2), "manifest.json: has version 2"),
        (lambda path: edit_manifest(path, format="other"), "manifest.json: is not the manifest"),
        (lambda path: edit_manifest(path, dtype="float64"), r"manifest.json: is damaged \(dtype is"),
        (lambda path: edit_manifest(path, teacher=None), "manifest.json: teacher has the type null, not dict; make"),
        (lambda path: edit_manifest(path, count=9), r"manifest.json: is damaged \(count is 9\)"),
        (lambda path: edit_manifest(path, dim=4), "features-00000.npy: holds float32 of shape"),
        (lambda path: edit_manifest(path, dtype="float16"), "features-00000.npy: holds float32"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda path: (path / "manifest.json").unlink(), "has no manifest.json; make one with mclip-features"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_damage_is_found_when_the_directory_is_opened(
    tmp_path: Path,
    damage: Callable[[Path], None],
    named: str,
    before: bool,
    request: pytest.FixtureRequest,
) -> None:
    """Also where the directory was sound when it was last verified."""
    make(tmp_path)
    if before:
        request.getfixturevalue("settled")
        FeatureStore.open(tmp_path)
        assert verified.record_of(tmp_path).is_file()
    damage(tmp_path)
    with pytest.raises(ValueError, match=named):
        FeatureStore.open(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be remembered; their clock has moved on since they were written."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))
    time.sleep(0.02)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been read to compare their hashes."""
    names: list[str] = []

    def file_sha256(path: Path) -> str:
        names.append(path.name)
        return files.file_sha256(path)

    monkeypatch.setattr(feature_checks, "file_sha256", file_sha256)
    return names


def test_what_was_verified_is_not_read_again(tmp_path: Path, settled: None, hashed: list[str]) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", ids=[f"b{number}" for number in range(ROWS)])
    every = ["features-00000.npy", "features-00001.npy", "features-00002.npy", "ids.txt"]
    FeatureStore.open(tmp_path / "a")
    assert sorted(hashed) == every
    assert "ids" not in vars(FeatureStore.open(tmp_path / "a")), "they are not read either"
    FeatureStore.open_all([tmp_path / "a", tmp_path / "b"])
    assert sorted(hashed) == sorted(every * 2)
    with pytest.raises(ValueError, match=r"the id 'photos/bäum 0.jpg' appears twice"):
        FeatureStore.open_all([tmp_path / "a", tmp_path / "a"])
    shutil.copytree(tmp_path / "a", tmp_path / "copy")  # with equal times of change
    FeatureStore.open(tmp_path / "copy")
    assert sorted(hashed) == sorted(every * 3)
    (tmp_path / "a" / "features-00001.npy").touch()
    FeatureStore.open(tmp_path / "a")
    assert hashed[12:] == ["features-00001.npy"]


@pytest.mark.parametrize("record", ["[]", "{", "[" * 200_000, '{"ids.txt": 3}', None])
def test_an_unusable_record_is_ignored(tmp_path: Path, record: str | None, hashed: list[str]) -> None:
    """So is a record of files that could have changed without a new time; a folder instead of it is not an error."""
    make(tmp_path)
    file = verified.record_of(tmp_path)
    file.parent.mkdir(parents=True, exist_ok=True)
    if record is None:
        file.mkdir()
    else:
        file.write_text(record)
    FeatureStore.open(tmp_path)
    FeatureStore.open(tmp_path)
    assert len(hashed) == 8


@pytest.mark.parametrize(
    ("damage", "named"),
    [(delete_shard, "is missing"), (truncate_shard, "is truncated"), (delete_ids, "cannot be read")],
)
def test_sizes_are_checked_even_without_verification(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    make(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=named):
        _ = FeatureStore.open(tmp_path, verify=False).ids  # which are read when they are asked for


def test_a_pickled_shard_is_never_unpickled(tmp_path: Path) -> None:
    make(tmp_path)
    np.save(tmp_path / "features-00000.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"truncated or not a \.npy file"):
        FeatureStore.open(tmp_path, verify=False)


def test_manifest_may_not_lead_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "one")
    shards = [{"file": "../one/features-00000.npy", "rows": 4, "sha256": "0"}]
    make(tmp_path / "two")
    edit_manifest(tmp_path / "two", shards=shards, count=4)
    with pytest.raises(ValueError, match="shard 0: file is"):
        FeatureStore.open(tmp_path / "two")


def test_several_directories_are_one_table(tmp_path: Path) -> None:
    make(tmp_path / "a")
    more = [f"more{number}" for number in range(ROWS)]
    make(tmp_path / "b", more, (ARRAY + 100).astype(np.float16))
    store = FeatureStore.open_all([tmp_path / "a", tmp_path / "b"])
    assert store.ids == IDS + more
    assert store.dtype == np.float32
    rows = store.rows(["more2", IDS[1], "more9"])
    np.testing.assert_array_equal(rows, [12, 1, 19])
    expected = np.stack([ARRAY[2] + 100, ARRAY[1], ARRAY[9] + 100])
    np.testing.assert_allclose(store.take(rows), expected, rtol=1e-3)


def test_directories_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    others = [f"more{number}" for number in range(ROWS)]
    unit = ARRAY[1:] / np.linalg.norm(ARRAY[1:], axis=1, keepdims=True)
    make(tmp_path / "wide", others, np.zeros((ROWS, 5)))
    make(tmp_path / "teacher", others, model="siglip")
    make(tmp_path / "revision", others, revision="v2")
    make(tmp_path / "text", others, modality="text")
    make(tmp_path / "unit", others[1:], unit, normalized=True)
    for name, reason in [
        ("wide", r"differ in dim \(3 and 5\)"),
        ("teacher", "features of two teachers"),
        ("revision", "features of two teachers"),
        ("text", "differ in modality"),
        ("unit", "differ in normalized"),
        ("a", "appears twice"),
    ]:
        with pytest.raises(ValueError, match=reason):
            FeatureStore.open_all([tmp_path / "a", tmp_path / name])
    with pytest.raises(ValueError, match="no feature directory"):
        FeatureStore.open_all([])


def test_equal_weights_are_one_teacher_under_any_name(tmp_path: Path) -> None:
    make(tmp_path / "a", model={"name": "here", "revision": None, "sha256": "1"})
    others = [f"more{number}" for number in range(ROWS)]
    make(tmp_path / "b", others, model={"name": "there", "revision": None, "sha256": "1"})
    make(tmp_path / "c", [f"c{name}" for name in others], model={"name": "here", "revision": None, "sha256": "2"})
    assert len(FeatureStore.open_all([tmp_path / "a", tmp_path / "b"])) == 2 * ROWS
    with pytest.raises(ValueError, match="two teachers"):
        FeatureStore.open_all([tmp_path / "a", tmp_path / "c"])


def test_content_hash_depends_on_content_and_not_on_the_folder(tmp_path: Path) -> None:
    one, same = make(tmp_path / "one"), make(tmp_path / "elsewhere")
    assert one.content_hash == same.content_hash
    assert one.identity == same.identity == {"name": "clip", "revision": None}
    assert make(tmp_path / "values", array=ARRAY + 1).content_hash != one.content_hash
    assert make(tmp_path / "ids", ids=IDS[::-1]).content_hash != one.content_hash
    for name in ("one", "elsewhere"):
        assert str(tmp_path) not in (tmp_path / name / "manifest.json").read_text(encoding="utf-8")


def test_a_model_whose_directory_was_renamed_is_the_same_model(tmp_path: Path) -> None:
    first = writer(tmp_path, teacher={"name": "clip", "sha256": "a" * 64})
    again = {"name": "copy of clip", "sha256": "a" * 64}
    assert writer(tmp_path, teacher=again).pending() == first.pending()
    for shard in first.pending():
        first.write(shard, ARRAY[first.inputs(shard).start : first.inputs(shard).stop])
    first.finalize()
    assert not writer(tmp_path, teacher=again).pending()
    for other in ({"name": "clip", "sha256": "b" * 64}, {"name": "clip"}):
        with pytest.raises(UserError, match="was started with a different teacher"):
            writer(tmp_path, teacher=other)


def test_writing_the_same_again_does_nothing_and_other_content_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    make(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="was started with a different content"):
        make(tmp_path, array=ARRAY + 1)
    with pytest.raises(ValueError, match="a different list of ids"):
        make(tmp_path, ids=IDS[::-1])


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([*IDS[:-1], IDS[0]], "appears twice"),
        ([*IDS[:-1], "a\tb"], "no tabs"),
        ([*IDS[:-1], "a\nb"], "line breaks"),
        ([*IDS[:-1], "a\u2028b"], "line breaks"),
        ([*IDS[:-1], " a"], "outer spaces"),
        ([*IDS[:-1], ""], "are not empty"),
        ([*IDS[:-1], "\udcff"], "not Unicode"),
        (IDS[:-1], "do not fit 9 ids"),
    ],
)
def test_unusable_ids_are_refused_before_anything_is_written(tmp_path: Path, ids: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(tmp_path / "out", ids=ids)
    assert not (tmp_path / "out").exists()


def test_values_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    for name, value, normalized, reason in [
        ("nan", np.nan, False, r"features of 'photos/bäum 2.jpg' and 0 others are not finite as float32"),
        ("inf", np.inf, False, "not finite"),
        ("norm", 0.5, True, "called normalised but have norms like"),
    ]:
        array = ARRAY.copy()
        array[2, 1] = value
        with pytest.raises(ValueError, match=reason):
            make(tmp_path / name, array=array, normalized=normalized)
    with pytest.raises(ValueError, match="not finite as float16"):
        writer(tmp_path / "wide", dtype="float16").write(0, np.full((4, DIM), 1e5))
    with pytest.raises(ValueError, match="shard 0 needs values of shape"):
        writer(tmp_path / "shape").write(0, ARRAY[:3])


def test_the_manifest_is_written_last_when_all_shards_exist(tmp_path: Path) -> None:
    first, second = writer(tmp_path), writer(tmp_path)
    assert first.pending(0, 2) == [0, 2]
    assert second.pending(1, 2) == [1]
    second.write(1, ARRAY[4:8])
    assert not second.finalize()
    with pytest.raises(ValueError, match="not finished"):
        FeatureStore.open(tmp_path)
    first.write(0, ARRAY[:4])
    first.write(2, ARRAY[8:])
    assert first.finalize({"command": ["x"]})
    assert second.finalize()
    store = FeatureStore.open(tmp_path)
    np.testing.assert_array_equal(store.take(range(ROWS)), ARRAY)
    assert store.manifest["made_by"] == {"command": ["x"]}
    assert not (tmp_path / "partial").exists()
    assert writer(tmp_path).pending() == []


def test_skipped_inputs_leave_no_row_and_a_shard_may_be_empty(tmp_path: Path) -> None:
    half = writer(tmp_path)
    half.write(0, ARRAY[[0, 2, 3]], [(IDS[1], "broken")])
    half.write(1, np.zeros((0, DIM)), [(name, "gone") for name in IDS[4:8]])
    half.write(2, ARRAY[8:])
    assert half.finalize()
    for store in (FeatureStore.open(tmp_path), FeatureStore.open(tmp_path, verify=False)):
        assert store.ids == [IDS[0], IDS[2], IDS[3], IDS[8], IDS[9]]
        np.testing.assert_array_equal(store.take([4, 1, 3]), ARRAY[[9, 2, 8]])
    assert writer(tmp_path).skipped() == [(IDS[1], "broken"), *((name, "gone") for name in IDS[4:8])]


def test_shards_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    np.save(tmp_path / "features-00000.npy", ARRAY)
    with pytest.raises(ValueError, match="unknown origin"):
        writer(tmp_path)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for options in ({"dtype": "int8"}, {"modality": "sound"}, {"shard_rows": 0}, {"dim": 0}):
        with pytest.raises(ValueError, match="features need a dtype"):
            writer(tmp_path / "out", **options)
