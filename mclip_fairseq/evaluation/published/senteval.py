"""Sentence similarity in the shape that papers print: a column per task of SentEval, and their average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mclip_fairseq.evaluation.metrics.similarity import SENTEVAL, senteval_tasks
from mclip_fairseq.evaluation.reports.comparison import ReportRow

Results = Mapping[str, Mapping[str, float]]
AVERAGE = f"mean of {len(SENTEVAL)}"  # as the published table calls it in the place of a language
COLUMNS = {task: task.upper() for task in SENTEVAL} | {"stsb": "STS-B", "sick": "SICK-R", AVERAGE: "average"}
SENTEVAL_NOTE = (
    "Average: over STS12 to STS16, STS-B and SICK-R, each with the same weight. In SentEval's mean each set of a year "
    "counts the same, in its wmean each pair does; the source does not say which one it reports."
)


def senteval_table(metric: str, own: Sequence[ReportRow], published: Mapping[str, Results]) -> list[list[str]] | None:
    """A row per model, two for an own one where SentEval's ways of averaging a year differ.

    Args:
        metric: `pearson` or `spearman`.
        own: results by table of `preprocess/sts.py`; a task of which a table is missing has no value.
        published: system -> results, by `stsb.test.en` and `mean of 7`.

    Returns:
        the header and the rows, without the columns that stay empty; None where an own row has no value.
    """
    rows: list[tuple[str, dict[str, float]]] = []
    for row in own:
        mean, weighted = (_by_task(row, kind, metric) for kind in ("mean", "wmean"))
        one = [(row.model, mean)]
        rows += one if mean == weighted else [(f"{row.model}, mean", mean), (f"{row.model}, wmean", weighted)]
    if not any(values for _, values in rows):
        return None
    for system, results in published.items():
        by_task = {name.split(".")[0]: values for name, values in results.items()}
        rows.append((system, {task: values[metric] for task, values in by_task.items() if metric in values}))
    columns = [task for task in COLUMNS if any(task in values for _, values in rows)]
    table = [["model", *(COLUMNS[task] for task in columns)]]
    for name, values in rows:
        table.append([name, *(f"{values[task]:.1f}" if task in values else "–" for task in columns)])
    return table


def _by_task(row: ReportRow, kind: str, metric: str) -> dict[str, float]:
    """Task -> its value, averaged over its tables in one of SentEval's ways; the average if every task is whole."""
    tasks = senteval_tasks(row.results)
    whole = [task for task in SENTEVAL if len(tasks.get(task, ())) == SENTEVAL[task]]
    values = {}
    for task in whole:
        single = SENTEVAL[task] == 1
        values[task] = (row.results[tasks[task][0]] if single else row.average[f"{task} {kind}"])[metric]
    return values | ({AVERAGE: row.average[kind][metric]} if len(whole) == len(SENTEVAL) else {})
