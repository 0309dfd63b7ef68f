"""Benchmarks of text alone: sentences that find their translations, and sentence similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.encoding.galleries import Encoder, Gallery, encode_in_chunks, reader_of
from mclip_fairseq.evaluation.benchmarks.base import Benchmark
from mclip_fairseq.evaluation.benchmarks.files import AGAIN, choose_languages, file_below, read_table, real_numbers
from mclip_fairseq.evaluation.benchmarks.settings import Settings
from mclip_fairseq.evaluation.metrics.bitext import bitext_accuracy
from mclip_fairseq.evaluation.metrics.languages import average_languages
from mclip_fairseq.evaluation.metrics.similarity import average_sets, similarity_correlations
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import file_sha256, read_lines


class BitextBenchmark(Benchmark):
    """Sentences of many languages with their translations, as `preprocess/tatoeba.py` writes them.

    Args:
        folder: with `test.XXX-eng.XXX` and `test.XXX-eng.eng`.
        name: for tables.
        pairs: the pairs of the manifest.
        languages: which to evaluate; None for all.
        notes: see `Benchmark`.

    Raises:
        UserError: a file is missing, or the two sides of a pair differ in length.
    """

    kind = "bitext"
    headline = "accuracy"
    galleries: Sequence[Gallery] = ()

    def __init__(
        self, folder: Path, name: str, pairs: Sequence[str], languages: Sequence[str] | None, notes: Sequence[str]
    ) -> None:
        self.name = name
        self.notes = notes
        pair_of = {pair.split("-")[0]: pair for pair in pairs}
        self.files = {
            language: [file_below(folder, f"test.{pair_of[language]}.{side}") for side in pair_of[language].split("-")]
            for language in choose_languages(languages, pair_of, folder)
        }
        self.sides = {language: [read_lines(path) for path in paths] for language, paths in self.files.items()}
        for language, (source, target) in self.sides.items():
            if len(source) != len(target) or not source:
                first, second = self.files[language]
                raise UserError(f"{first}: has {len(source)} lines, {second} {len(target)}; {AGAIN}")

    def describe(self) -> dict[str, Any]:
        """Number of pairs and hashes of both files per language."""
        return {
            language: {"pairs": len(self.sides[language][0]), "sha256": [file_sha256(path) for path in paths]}
            for language, paths in self.files.items()
        }

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """Accuracy of finding each sentence's translation, per language, with averages and intervals."""
        results, confidence = {}, {}
        for language, sides in self.sides.items():
            features = [
                encode_in_chunks(reader_of(model, path.suffix[1:]).encode_text, side, settings.batch_size, language)
                for path, side in zip(self.files[language], sides, strict=True)
            ]
            results[language], interval = bitext_accuracy(*features)
            confidence[language] = {"accuracy": interval}
        return {"results": results, "confidence": confidence, "average": average_languages(results)}


class SimilarityBenchmark(Benchmark):
    """Pairs of sentences with human scores, as `preprocess/sts.py` writes them.

    Args:
        folder: with a file `TABLE.tsv` per table: score, sentence, sentence.
        name: for tables.
        tables: those of the manifest.
        languages: which tables to evaluate; None for all.
        notes: see `Benchmark`.

    Raises:
        UserError: a file is missing or malformed, or scipy is missing.
    """

    kind = "similarity"
    headline = "spearman"
    galleries: Sequence[Gallery] = ()

    def __init__(
        self, folder: Path, name: str, tables: Sequence[str], languages: Sequence[str] | None, notes: Sequence[str]
    ) -> None:
        self.name = name
        self.notes = notes
        file_of = {table: file_below(folder, f"{table}.tsv") for table in tables}
        self.files = {table: file_of[table] for table in choose_languages(languages, file_of, folder)}
        self.rows = {table: read_table(path, 3) for table, path in self.files.items()}
        self.scores = {
            table: real_numbers(path, [row[0] for row in self.rows[table]]) for table, path in self.files.items()
        }
        import_extra("scipy.stats", "evaluate")  # fail now, before a model is loaded

    def describe(self) -> dict[str, Any]:
        """Number of pairs and hash of the file per table."""
        return {t: {"pairs": len(self.rows[t]), "sha256": file_sha256(path)} for t, path in self.files.items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """Table -> its number of pairs."""
        return {table: {"pairs": len(rows)} for table, rows in self.rows.items()}

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """Correlation of cosines with human scores per table, with averages and intervals."""
        results, confidence = {}, {}
        for table, rows in self.rows.items():
            _, *sides = zip(*rows, strict=True)
            # A table is called SET.SPLIT.LANG, or SET.LANG-LANG where its sides are in two languages.
            codes = table.rsplit(".", 1)[-1].split("-")
            first, second = (
                encode_in_chunks(reader_of(model, code).encode_text, list(side), settings.batch_size, table)
                for code, side in zip((codes[0], codes[-1]), sides, strict=True)
            )
            results[table], confidence[table] = similarity_correlations(first, second, self.scores[table])
        pairs = {table: len(rows) for table, rows in self.rows.items()}
        averages = average_languages(results) | average_sets(results, pairs)
        return {"results": results, "confidence": confidence, "average": averages}
