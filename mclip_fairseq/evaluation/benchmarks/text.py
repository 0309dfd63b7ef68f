"""Benchmarks of text alone: translations that find each other, and sentence similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.encoding.galleries import Encoder, Gallery, encode_in_chunks
from mclip_fairseq.evaluation.benchmarks.base import Settings, chosen, file_below, read_table, real_numbers
from mclip_fairseq.evaluation.metrics.bitext import bitext_accuracy
from mclip_fairseq.evaluation.metrics.languages import average_languages
from mclip_fairseq.evaluation.metrics.similarity import similarity_correlations
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines


class BitextBenchmark:
    """Sentences of many languages with their translations, as `preprocess/tatoeba.py` writes them.

    Args:
        folder: with `test.XXX-eng.XXX` and `test.XXX-eng.eng`.
        name: for tables.
        pairs: the pairs of the manifest.
        languages: which; None takes all.
        notes: see ``Benchmark``.

    Raises:
        UserError: a file is missing, or its sides differ in length.
    """

    kind = "bitext"
    headline = "accuracy"
    galleries: Sequence[Gallery] = ()

    def __init__(
        self, folder: Path, name: str, pairs: Sequence[str], languages: Sequence[str] | None, notes: Sequence[str]
    ) -> None:
        self.name = name
        self.notes = notes
        there = {pair.split("-")[0]: pair for pair in pairs}
        self.files = {
            language: [file_below(folder, f"test.{there[language]}.{side}") for side in there[language].split("-")]
            for language in chosen(languages, there, folder)
        }
        self.sides = {language: [read_lines(path) for path in paths] for language, paths in self.files.items()}
        for language, (source, target) in self.sides.items():
            if len(source) != len(target) or not source:
                first, second = self.files[language]
                raise UserError(
                    f"{first}: has {len(source)} lines and {second} {len(target)}: they are no translations."
                )

    def describe(self) -> dict[str, Any]:
        """See ``Benchmark``."""
        return {
            language: {"pairs": len(self.sides[language][0]), "sha256": [file_sha256(path) for path in paths]}
            for language, paths in self.files.items()
        }

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """See ``Benchmark``."""
        results, confidence = {}, {}
        for language, sides in self.sides.items():
            features = [encode_in_chunks(model.encode_text, side, settings.batch_size, language) for side in sides]
            results[language], interval = bitext_accuracy(*features)
            confidence[language] = {"accuracy": interval}
        return {"results": results, "confidence": confidence, "average": average_languages(results)}


class SimilarityBenchmark:
    """Pairs of sentences with human scores, as `preprocess/sts.py` writes them.

    Args:
        folder: with a file `TABLE.tsv` per table: score, sentence, sentence.
        name: for tables.
        tables: those of the manifest.
        languages: which tables; None takes all.
        notes: see ``Benchmark``.

    Raises:
        UserError: a file is missing, or not of this form.
    """

    kind = "similarity"
    headline = "spearman"
    galleries: Sequence[Gallery] = ()

    def __init__(
        self, folder: Path, name: str, tables: Sequence[str], languages: Sequence[str] | None, notes: Sequence[str]
    ) -> None:
        self.name = name
        self.notes = notes
        there = {table: file_below(folder, f"{table}.tsv") for table in tables}
        self.files = {table: there[table] for table in chosen(languages, there, folder)}
        self.rows = {table: read_table(path, 3) for table, path in self.files.items()}
        self.scores = {
            table: real_numbers(path, [row[0] for row in self.rows[table]]) for table, path in self.files.items()
        }

    def describe(self) -> dict[str, Any]:
        """See ``Benchmark``."""
        return {t: {"pairs": len(self.rows[t]), "sha256": file_sha256(path)} for t, path in self.files.items()}

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """See ``Benchmark``."""
        results, confidence = {}, {}
        for table, rows in self.rows.items():
            _, *sides = zip(*rows, strict=True)
            first, second = (
                encode_in_chunks(model.encode_text, list(side), settings.batch_size, table) for side in sides
            )
            results[table], confidence[table] = similarity_correlations(first, second, self.scores[table])
        return {"results": results, "confidence": confidence, "average": average_languages(results)}
