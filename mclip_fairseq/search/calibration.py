"""What the score of a hit means, measured with the bank of queries of an index.

The cosine of a wrong image looks like that of a right one. The **fit** of a hit is the share of the bank's queries
whose nearest image is less near. If no image answers the queries of the bank, a fit of f is reached by 1 - f of the
queries that have no answer.

The bank also corrects hubs, images that are near to many queries, as QB-Norm does (Bogolin et al., CVPR 2022): where
the nearest image of a query is the nearest of some query b of the bank, its hits are put in the order of
`exp(scale * s(q, j)) / sum_b exp(scale * s(b, j))`, with s the cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mclip_fairseq.search.bank import LEAST, Bank, Labelled, encode_labelled, nearest_others, read_bank, search_bank
from mclip_fairseq.search.engine import Hit, Index, Row, Vectors
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown

DEFAULT_FIT = 0.5
SCALE = 20.0  # QB-Norm's
CANDIDATES = 100  # nearest images that are put in order


@dataclass(frozen=True)
class Calibration:
    """Judges hits of text queries with a bank.

    Attributes:
        bank: of the index that is searched.
        least: hits with less fit do not fit well.
        hubs: whether hubs are corrected.
    """

    bank: Bank
    least: float = DEFAULT_FIT
    hubs: bool = False

    @cached_property
    def found(self) -> frozenset[str]:
        """Images that are the nearest of a query of the bank."""
        return frozenset(self.bank.nearest)

    def depth(self, k: int) -> int:
        """How many hits must be searched for k."""
        return max(k, CANDIDATES) if self.hubs else k

    def fit(self, score: float, language: str = "") -> float:
        """The share of the bank's queries whose nearest image has a lower cosine than this.

        Args:
            score: cosine.
            language: of the query; without one, or with few queries of it in the bank, the whole bank counts.
        """
        own = self.bank.best[self.bank.languages == language]
        return float(((own if len(own) >= LEAST else self.bank.best) < score).mean())

    def judge(self, index: Index, hits: Sequence[Hit], language: str = "") -> list[Hit]:
        """Hits of a text with their fit, in the corrected order where hubs are corrected."""
        judged = [replace(hit, fit=self.fit(hit.score, language)) for hit in hits]
        return self.without_hubs(index, judged) if self.hubs else judged

    def fits(self, hits: Sequence[Hit]) -> bool:
        """Whether a judged hit fits well."""
        return any(hit.fit is not None and hit.fit >= self.least for hit in hits)

    def without_hubs(self, index: Index, hits: Sequence[Hit]) -> list[Hit]:
        """Hits, best first, in QB-Norm's order."""
        if not hits or hits[0].id not in self.found:
            return list(hits)
        if new := [hit.row for hit in hits if hit.row not in self.crowds]:
            vectors = index.vectors(new)
            if vectors is None:
                raise UserError(f"{index.path}: keeps no exact vectors to correct hubs with; leave out --hubs")
            self.crowds.update(zip(new, self.crowd(vectors), strict=True))
        return sorted(hits, key=lambda hit: self.crowds[hit.row] - hit.score)

    @cached_property
    def crowds(self) -> dict[Row, float]:
        """The `crowd` of images that were hits before."""
        return {}

    def crowd(self, vectors: Vectors) -> list[float]:
        """What QB-Norm takes from the cosines of images: the logarithm of its sum, divided by its scale.

        Args:
            vectors: (n, dim) of the images.
        """
        exponents = SCALE * (vectors.astype(np.float64) @ self.bank.vectors.T.astype(np.float64))
        crowd: list[float] = (np.logaddexp.reduce(exponents, axis=1) / SCALE).tolist()
        return crowd


def read_calibration(index: Index, least: float | None, hubs: bool) -> Calibration | None:
    """What judges the hits of an index; None if it has no bank.

    Args:
        index: what is searched.
        least: see `Calibration`; None is the default.
        hubs: see `Calibration`.

    Raises:
        UserError: an option needs a bank, and the index has none; or the bank is damaged.
    """
    bank = read_bank(index)
    if bank is None:
        if hubs or least is not None:
            option = "--hubs" if hubs else "--fit"
            raise UserError(f"{index.path}: has no bank of queries, which {option} needs; run mclip-search calibrate")
        return None
    return Calibration(bank, DEFAULT_FIT if least is None else least, hubs)


def measure(
    index: Index, calibration: Calibration, queries: Sequence[Labelled], vectors: Vectors
) -> dict[str, dict[str, float]]:
    """How often the judgement is wrong, per language.

    Args:
        index: what is searched.
        calibration: its bank, which holds none of the queries.
        queries: with the image that each describes, or without one.
        vectors: (n, dim) of the queries.

    Returns:
        language -> `queries`; `false_alarms`, the share that fits well although its image is left out of the index
        or was never in it; `misses`, the share of those with an image of which nothing fits well; `R@1`, `R@10`, and
        both with hubs corrected as `hubs_R@1` and `hubs_R@10`; in percent.
    """
    corrected = replace(calibration, hubs=True)
    found = index.hits(vectors, CANDIDATES)
    others = nearest_others(index, vectors, [query.image for query in queries])
    table: dict[str, dict[str, float]] = {}
    for language in dict.fromkeys(query.language for query in queries):
        rows = [number for number, query in enumerate(queries) if query.language == language]
        without = [calibration.judge(index, [other], language) for other in map(others.__getitem__, rows) if other]
        own = [number for number in rows if queries[number].image]
        ids = [queries[number].image for number in own]
        plain = [calibration.judge(index, found[number], language) for number in own]
        better = [corrected.without_hubs(index, hits) for hits in plain]
        table[language] = {
            "queries": len(rows),
            "false_alarms": percent([calibration.fits(hits) for hits in without]),
            "misses": percent([not calibration.fits(hits) for hits in plain]),
        }
        for name, answers in (("", plain), ("hubs_", better)):
            for k in (1, 10):
                right = [image in {hit.id for hit in hits[:k]} for image, hits in zip(ids, answers, strict=True)]
                table[language][f"{name}R@{k}"] = percent(right)
    return table


def percent(values: Sequence[bool]) -> float:
    """The share of true values; not a number where there are none."""
    return 100 * sum(values) / len(values) if values else float("nan")


def format_measures(table: Mapping[str, Mapping[str, float]]) -> str:
    """What `measure` returns, for a terminal and for Markdown."""
    columns = ["queries", "false alarms", "misses", "R@1", "R@10", "R@1, hubs corrected", "R@10, hubs corrected"]
    lines = [f"| language | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for language, row in table.items():
        queries, *shares = row.values()
        lines.append(f"| {shown(language)} | {queries:.0f} | {' | '.join(f'{share:.1f}' for share in shares)} |")
    return "\n".join(lines)


def calibrate(
    index: Index,
    load: Callable[[], Any],
    queries: Sequence[Labelled],
    test: Sequence[Labelled] = (),
    least: float | None = None,
) -> str:
    """Give an index a bank of queries.

    Args:
        index: what gets the bank.
        load: loads its model.
        queries: of the bank.
        test: other queries to measure with.
        least: see `Calibration`; None is the default.

    Returns:
        what was written and measured, for a terminal.

    Raises:
        UserError: a query is in both, or there are too few images to search.
    """
    if len(index) < 2:
        raise UserError(f"{index.path}: has {len(index)} images, too few to compare queries with; add some")
    both = {query.text for query in queries} & {query.text for query in test}
    if both:
        raise UserError(
            f"{len(both)} queries of --test are in the bank, too, such as {min(both)!r}; measure with other queries"
        )
    model = load()
    languages, images = [query.language for query in queries], [query.image for query in queries]
    bank = search_bank(index, encode_labelled(model, queries), languages, images)
    place = index.write_bank(bank)
    counts = ", ".join(f"{shown(language)} {languages.count(language)}" for language in dict.fromkeys(languages))
    report = f"{place}: {len(queries)} queries ({counts})"
    if not test:
        return report
    calibration = Calibration(bank, DEFAULT_FIT if least is None else least)
    table = format_measures(measure(index, calibration, test, encode_labelled(model, test)))
    return f"{report}\nfalse alarms and misses at a fit of {calibration.least}, in percent:\n{table}"
