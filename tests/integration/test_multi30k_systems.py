"""examples/multi30k8k: every system of its table trains for two updates and is evaluated."""

from pathlib import Path

import pytest
import table

from tests.integration.test_recipes import recipe

IMAGES = {*table.LANGS, "MRV", "who en", "who others", "where en", "where others"}
TEXTS = {"bitext", "similar"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_systems_stand_in_one_table(repository_root: Path, shared_dir: Path, tmp_path: Path) -> None:
    data = shared_dir / "data" / "multi30k8k"
    for variant in ("m-clip", "altclip", "mla", "ccrk", "contrastive-tension"):
        recipe(repository_root, "multi30k8k", str(data), "runs", cwd=tmp_path, VARIANT=variant, SCALE=0.0005)
    rows = {name: set(seeds[0]) for name, seeds in table.read_runs(tmp_path / "runs").items()}
    systems = ("m-clip", "altclip", "altclip, stage 1", "mla", "mla, stage 1", "ccrk")
    texts = dict.fromkeys(("contrastive-tension", "contrastive-tension, before"), TEXTS)
    assert rows == {**dict.fromkeys(systems, IMAGES | TEXTS), **texts, "ccrk, re-ranked": {*table.LANGS, "MRV"}}
