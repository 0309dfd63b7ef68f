"""Options that may not change in the middle of an epoch: fairseq's are listed, a task marks its own in metadata."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest
from fairseq.dataclass.configs import CommonConfig, DatasetConfig, DistributedTrainingConfig, OptimizationConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf

import mclip_fairseq.tasks  # noqa: F401  # registers the tasks
from mclip_fairseq.resilience.checking import POSITION_OPTIONS, changed_options, position_options

FAIRSEQ_OPTIONS = {
    DistributedTrainingConfig: ("distributed_training", ["distributed_world_size"]),
    CommonConfig: ("common", ["seed"]),
    OptimizationConfig: ("optimization", ["update_freq", "skip_remainder_batch"]),
    DatasetConfig: (
        "dataset",
        [
            *("batch_size", "max_tokens", "required_batch_size_multiple", "train_subset", "grouped_shuffling"),
            "update_ordered_indices_seed",
        ],
    ),
}
TASK_OPTIONS = {
    "trikd": {"langs", "sampling_temperature", "max_caption_tokens", "tail_batches"},
    "mte": {"langs", "lang_pairs", "both_directions", "sampling_temperature", "truncate", "tail_batches"}
    | {"max_source_positions", "max_target_positions"},
}
POSITIONS: list[tuple[Any, str, str, str | None]] = [
    (config, group, name, None) for config, (group, names) in FAIRSEQ_OPTIONS.items() for name in names
]
POSITIONS += [
    (TASK_DATACLASS_REGISTRY.get(task), "task", name, task)
    for task, names in TASK_OPTIONS.items()
    for name in sorted(names)
]


@pytest.mark.parametrize(("config", "group", "name", "task"), POSITIONS)
def test_every_option_on_which_the_position_depends_is_compared(
    config: Any, group: str, name: str, task: str | None
) -> None:
    assert name in {field.name for field in fields(config)}
    same = {"task": {"_name": task}}
    stored, now = (OmegaConf.to_container(OmegaConf.merge(same, {group: {name: value}})) for value in ("then", "now"))
    assert isinstance(stored, dict)
    assert changed_options(stored, OmegaConf.create(now)) == [f"--{name.replace('_', '-')} then (now now)"]
    assert changed_options(stored, OmegaConf.create(stored)) == []


@pytest.mark.parametrize("task", TASK_OPTIONS)
def test_a_task_marks_its_own_options_in_their_metadata(task: str) -> None:
    """No other option of a task is compared, and fairseq's parser takes no notice of the mark."""
    cfg = OmegaConf.create({"task": {"_name": task}})
    own = {name.removeprefix("task.") for name in position_options(cfg)} - set(POSITION_OPTIONS) - {"_name"}
    assert {name for name in own if "." not in name} == TASK_OPTIONS[task]
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, TASK_DATACLASS_REGISTRY[task]())
    assert vars(parser.parse_args(["data", "--langs", "en,de"]))["langs"] == "en,de"
