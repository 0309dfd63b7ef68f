from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mclip_fairseq.cli import search as cli
from mclip_fairseq.search.sizes import Size, machines, size_of


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw", "sq8", "pq"])
def test_a_size_is_that_of_the_file(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs the extra search")
    from mclip_fairseq.search.kinds import factory_string, new_index, write_index
    from mclip_fairseq.search.settings import IndexSettings

    count, dim = 4000, 8
    vectors = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    lists = None if kind in ("exact", "hnsw") else 8
    index = new_index(factory_string(IndexSettings(kind, lists), dim, count), dim)
    index.train(vectors[:600])
    sizes = []
    for half in (vectors[:2000], vectors[2000:]):
        index.add(half)
        write_index(index, tmp_path / "index")
        sizes.append((tmp_path / "index").stat().st_size)
    # What does not grow, such as the centroids, cancels out.
    assert (sizes[1] - sizes[0]) / 2000 == pytest.approx(size_of(kind, dim).disk, rel=0.06)


def test_machines_are_rounded_up() -> None:
    assert size_of("exact", 512) == Size(2048, 2048)
    assert machines(Size(2048, 2048), 10**6, 256) == 1
    assert machines(Size(2048, 2048), 10**9, 256) == 11  # 1907.3 GiB in parts of 179.2


def test_the_table_of_the_documentation_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["size", "--vectors", "1000000", "100000000", "1000000000", "--dim", "512"]) == 0
    page = Path(__file__).parents[2] / "docs" / "search_database.md"
    assert capsys.readouterr().out in page.read_text()
