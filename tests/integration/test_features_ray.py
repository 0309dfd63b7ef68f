"""`mclip-features --engine ray`: the rows of the plain command to the bit, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq.cli.features import main
from mclip_fairseq.encoding.bulk import BulkSettings
from mclip_fairseq.encoding.units import Budget, Job, Unit
from mclip_fairseq.storage.errors import UserError
from tests.noise_photos import write_photos
from tests.tars import split_tars

NUMBER = 60


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="needs the extra scale")
    pytest.importorskip("ray.data", reason="needs the extra scale")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), NUMBER, 200, 300)


def run(clip: Path, output: Path, *more: object, status: int = 0) -> None:
    line = ["--model", clip, "--output", output, "--batch-size", 2, "--workers", 0, "--device", "cpu", *more]
    assert main(list(map(str, line))) == status


def name_of(number: int) -> str:
    """The path of an image below `photos`."""
    return f"{'a b/' if number % 2 else ''}{number:02d}.png"


def content(folder: Path) -> dict[str, bytes]:
    """All bytes but the manifest's, which says when and how the directory was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def workers_of_this_process() -> list[int]:
    """Process ids of the actors that encode for this process."""

    def parent(process: int) -> int:
        try:
            return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = folder.joinpath("cmdline").read_bytes().startswith(b"ray::MapWorker")
        except OSError:
            continue
        ancestor = int(folder.name)
        while is_worker and ancestor not in (0, os.getpid()):
            ancestor = parent(ancestor)
        if is_worker and ancestor:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(ray: Any, clip: Path, photos: Path, tmp_path: Path) -> None:
    run(clip, tmp_path / "plain", "--images", photos, "--shard-rows", 1)
    killed = list[tuple[int, int]]()

    def kill() -> None:
        deadline = time.monotonic() + 200
        while not killed and time.monotonic() < deadline:
            written = len(list((tmp_path / "ray" / "partial").glob("0*.json")))
            workers = workers_of_this_process() if written >= 3 else []
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed.append((workers[0], written))
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    run(clip, tmp_path / "ray", "--images", photos, "--shard-rows", 1, "--engine", "ray")
    thread.join()
    assert len(killed) == 1
    assert killed[0][1] < NUMBER - 3  # there was work left
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


@pytest.mark.slow
def test_finished_shards_are_kept(
    ray: Any, clip: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclip_fairseq.encoding import ray_engine

    compute = ray_engine.compute_with_ray

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, done in enumerate(compute(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield done

    command = ["--images", photos, "--shard-rows", 10, "--engine", "ray"]
    monkeypatch.setattr(ray_engine, "compute_with_ray", interrupted)
    run(clip, tmp_path / "ray", *command, status=130)
    first = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "ray").glob("*.npy")}
    assert len(first) >= 3
    monkeypatch.setattr(ray_engine, "compute_with_ray", compute)
    run(clip, tmp_path / "ray", *command)
    again = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "ray").glob("*.npy")}
    assert first.items() <= again.items()
    assert len(again) == 6
    run(clip, tmp_path / "plain", "--images", photos, "--shard-rows", 10)
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


@pytest.mark.slow
def test_tars_and_captions(ray: Any, clip: Path, photos: Path, tmp_path: Path) -> None:
    split_tars(photos, tmp_path / "tars", 20, {name_of(number): f"photo {number}" for number in range(NUMBER)})
    for kind in ("--images", "--captions"):
        run(clip, tmp_path / f"ray{kind}", kind, tmp_path / "tars" / "*.tar", "--engine", "ray")
        run(clip, tmp_path / f"plain{kind}", kind, tmp_path / "tars" / "*.tar")
        assert content(tmp_path / f"ray{kind}") == content(tmp_path / f"plain{kind}")
    (tmp_path / "en.txt").write_text("".join(f"photo {number}\n" for number in range(NUMBER)))
    for engine in ("ray", "local"):
        run(clip, tmp_path / engine, "--captions", tmp_path / "en.txt", "--shard-rows", 20, "--engine", engine)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


@pytest.mark.slow
def test_the_budget_is_that_of_all_workers(
    ray: Any, clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{number:02d}\t{photos}/{name_of(number)}" for number in range(20)]
    lines += [f"bad{number}\t{tmp_path}/none{number}.png" for number in range(3)]
    (tmp_path / "list.tsv").write_text("\n".join(lines[::2] + lines[1::2]) + "\n")
    command = ["--images", tmp_path / "list.tsv", "--shard-rows", 4, "--engine", "ray"]
    run(clip, tmp_path / "out", *command, status=2)
    assert (
        "3 of 23 inputs cannot be read; fix them, remove them, or skip them with --skip-budget 3:"
        in capsys.readouterr().err
    )
    run(clip, tmp_path / "out", *command, "--skip-budget", 2, status=2)
    assert "more than --skip-budget 2 inputs cannot be read" in capsys.readouterr().err
    run(clip, tmp_path / "out", *command, "--skip-budget", 3)
    assert capsys.readouterr().out.endswith("20 rows of 16 columns, 3 skipped\n")


@pytest.mark.slow
def test_what_a_worker_cannot_read_is_one_sentence(
    ray: Any, clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_tars(photos, tmp_path / "tars", 20)
    (tmp_path / "tars" / "00001.tar").write_bytes(b"x" * 5000)
    run(clip, tmp_path / "out", "--images", tmp_path / "tars" / "*.tar", "--engine", "ray", status=2)
    message = capsys.readouterr().err
    assert "00001.tar: is not a tar, or is truncated" in message
    assert "finished shards are kept, run the same command again to continue" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_cluster_of_two_machines(clip: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra scale")
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        run(clip, tmp_path / "ray", "--images", photos, "--shard-rows", 4, "--engine", "ray")
    finally:
        cluster.shutdown()
    run(clip, tmp_path / "plain", "--images", photos, "--shard-rows", 4)
    assert content(tmp_path / "ray") == content(tmp_path / "plain")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_a_cluster_that_cannot_be_reached(
    address: str, clip: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra scale")
    pytest.importorskip("ray.data", reason="needs the extra scale")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    run(clip, tmp_path / "out", "--images", photos, "--engine", "ray", status=2)
    message = capsys.readouterr().err
    assert f"RAY_ADDRESS={address}: cannot be reached (" in message
    assert "Traceback" not in message


def test_ray_that_does_not_start(
    clip: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra scale")
    pytest.importorskip("ray.data", reason="needs the extra scale")

    def busy(**settings: Any) -> None:
        raise Exception("The current node timed out during startup.")  # as it does on a busy machine

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", busy)
    run(clip, tmp_path / "out", "--images", photos, "--engine", "ray", status=2)
    assert "Ray does not start on this machine (The current node timed out during" in capsys.readouterr().err


def test_machines_are_not_for_ray(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(clip, tmp_path / "out", "--images", tmp_path, "--engine", "ray", "--machines", 2, status=2)
    assert "leave it out with --engine ray" in capsys.readouterr().err
    run(clip, tmp_path / "out", "--images", tmp_path, "--engine", "ray", "--device", "cuda:1", status=2)
    assert "--device cuda:1: Ray gives each worker a GPU of its own; give --device cuda" in capsys.readouterr().err


def test_a_unit_that_is_encoded_again_counts_once() -> None:
    budget = Budget(limit=3, spent=1)
    assert budget.allows(0, 1)
    assert budget.allows(0, 1)  # after its worker was lost
    assert not budget.allows(1, 2)
    assert budget.allows(1, 1)
    assert not budget.allows(2, 1)
    assert budget.allows(2, 0)


def test_errors_of_a_worker_come_back_as_sentences(tmp_path: Path) -> None:
    from mclip_fairseq.encoding.ray_engine import Worker

    def refuses() -> Any:
        raise UserError("m: is a different model on h")

    def full() -> Any:
        def opened(unit: Unit) -> Any:
            raise OSError(28, "No space left on device", "features-00000.npy")

        return torch.device("cpu"), opened

    def row(start: Any) -> Any:
        job = Job(tmp_path, {}, BulkSettings(2), start, with_ids=False)
        return Worker(job, torch.get_num_threads(), None)({"unit": Unit(5, [])})["done"]

    assert (row(refuses).shard, row(refuses).error) == (5, "m: is a different model on h")
    assert "No space left on device" in row(full).error
