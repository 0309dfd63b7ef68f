"""Base class of the tasks: language options, single-language batches, and steps where a rank has no data."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.tasks import FairseqTask
from omegaconf import open_dict
from torch import Tensor

from mclip_fairseq.criterions.nonfinite import NonFiniteError, find_nonfinite, zero_gradient, zeroed
from mclip_fairseq.criterions.terms import TermsCriterion
from mclip_fairseq.data.batches import RowDataset
from mclip_fairseq.data.checksums import checksum, lengths
from mclip_fairseq.data.sampling import TemperatureSampledDataset
from mclip_fairseq.data.skips import SkipList
from mclip_fairseq.models.autocast import Autocast
from mclip_fairseq.models.stored_options import missing_options
from mclip_fairseq.resilience.program import early_stopping
from mclip_fairseq.resilience.workers import discard
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.places import relative_places

logger = logging.getLogger(__name__)
DATA_FILES = (".bin", ".ids")


def split_list(value: str, option: str) -> list[str]:
    """Split a comma-separated option.

    Raises:
        UserError: the list is empty or names something twice.
    """
    items = [item.strip() for item in value.split(",") if item.strip()]
    if not items:
        raise UserError(f"{option} is empty; give a comma-separated list")
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise UserError(f"{option} names {', '.join(twice)} more than once")
    return items


class SampledTask(FairseqTask):
    """A task whose datasets are `TemperatureSampledDataset`s and whose losses look across ranks.

    | batch entry | shape | meaning |
    |---|---|---|
    | `id` | (batch,) int64 | numbers of the samples, named where something is not finite |
    | `part` | str | language or direction of the batch |
    | `is_dummy` | bool | the batch only keeps the rank in step; absent means False |
    | the others | | those of the dataset and the criterion |

    Attributes:
        model: the model built last, or None.
        skips: what training leaves out within --skip-budget.
        too_long: the remedy where a sample is longer than the task and the model allow.
        between_batches: called between batches of a long validation, so that a signal can save.
        figures: what `begin_valid_epoch` measured over the whole split, by the name it is logged under.
    """

    cfg: Any
    too_long: str

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        if cfg.tf32:
            torch.set_float32_matmul_precision("high")
        self.model: Any = None
        self.skips = SkipList(Path(cfg.save_dir) / "skipped.tsv", cfg.skip_budget)
        self.between_batches: Callable[[], None] = _nothing
        self.trained_on: TemperatureSampledDataset | None = None
        self.validated_on: dict[str, int] = {}
        self.skipped = 0
        self.iterators: dict[int, Any] = {}
        self.stored_parts: dict[str, list[int]] | None = None
        self.kept_in_update = {"update": -1, "kept": 0}
        self.figures: dict[str, float] = {}
        self.validating = False  # whose step was the last one, for `reduce_metrics`

    def load_parts(self, split: str, training: bool) -> Mapping[str, RowDataset]:
        """Name -> dataset of every language or direction of a split; only training may leave something out."""
        raise NotImplementedError

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split: as training data, sampled and within --skip-budget, for the trainer, and whole for all others.

        Args:
            split: such as `train` or `valid`.
            epoch: for the draw of the samples.
            combine: unused; fairseq passes it.
            **kwargs: `data_selector`, whatever its value, from fairseq's trainer alone; the rest is unused.

        Raises:
            UserError: files that are missing, do not fit, or cannot be used.
        """
        training = "data_selector" in kwargs
        if training:
            self.skips.check()
        parts = self.load_parts(split, training)
        dataset = self.sampled(parts, training)
        dataset.tail = str(self.cfg.tail_batches)
        dataset.set_epoch(epoch)
        self.datasets[split] = dataset
        if training:
            self.trained_on = dataset

    def sampled(self, parts: Mapping[str, RowDataset], training: bool) -> TemperatureSampledDataset:
        """The parts of a split as one dataset: mixed by temperature in training, whole and in order otherwise."""
        return TemperatureSampledDataset(parts, self.cfg.sampling_temperature, seed=self.cfg.seed, shuffle=training)

    def has_sharded_data(self, split: str) -> bool:
        """False: all directories of the data are read at once, where fairseq would take one of them an epoch."""
        return False

    def line_name(self, number: int, file: str, row: int) -> str:
        """Name of a line in the skip list; the name stays the same if the data have moved before a restart.

        Args:
            number: of the data directory, from 0.
            file: name of the file in it.
            row: of the line, from 0.
        """
        place = f"data {number + 1}: " if len(utils.split_paths(self.cfg.data)) > 1 else ""
        return f"{place}{file}, line {row + 1}"

    def train_step(
        self,
        sample: dict[str, Any],
        model: torch.nn.Module,
        criterion: torch.nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Fairseq's step, except that a dummy batch says so and a batch that is not finite does not count.

        The loss of a dummy batch (see `TemperatureSampledDataset`) is zeroed, but its rows would still be gathered as
        false negatives of the other ranks; the criterions leave the rows of a marked batch out, and so they do where
        the data say that nothing of it could be read.
        """
        self.validating = False
        dummy = bool(sample.get("is_dummy", False)) or ignore_grad
        checked = functools.partial(self.checked_loss, criterion, update_num)
        step: tuple[Tensor, Any, dict[str, Any]] = super().train_step(
            {**sample, "is_dummy": dummy}, model, checked, optimizer, update_num, dummy
        )
        loss, sample_size, logged = step
        if self.skipped:
            metrics.log_scalar("skipped_nonfinite", self.skipped, weight=0, round=0)
        return (loss, 0, zeroed(logged)) if dummy else (loss, sample_size, logged)

    def checked_loss(
        self, criterion: torch.nn.Module, update_num: int, model: torch.nn.Module, sample: dict[str, Any]
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """The criterion's answer; zeros where a rank's loss or features are not finite.

        Raises:
            NonFiniteError: on all ranks alike, when --skip-nonfinite is used up.
        """
        bad_rows: Tensor | int = 0
        computed = self.in_precision(model)
        with self.autocast(loss_device(model)):
            if isinstance(criterion, TermsCriterion):
                loss, sample_size, logged, bad_rows = criterion.outcome(computed, sample)
            else:  # one of fairseq's, or a user's
                loss, sample_size, logged = criterion(computed, sample)
        blame, counts = find_nonfinite(loss, bad_rows, sample, sample["is_dummy"])
        if self.kept_in_update["update"] != update_num:
            self.kept_in_update = {"update": update_num, "kept": 0}
        self.kept_in_update["kept"] += bool(counts and not blame)
        if not blame:
            return loss, sample_size, logged
        self.skipped += 1
        message = f"update {update_num + 1}: not finite: {'; '.join(blame)}"
        if self.skipped > self.cfg.skip_nonfinite:
            raise NonFiniteError(
                f"{message}; repair these samples, lower the learning rate, or pass --skip-nonfinite "
                f"{max(self.skipped, 10)} to leave out up to that many such batches"
            )
        logger.warning("%s; batch left out, %d of --skip-nonfinite %d", message, self.skipped, self.cfg.skip_nonfinite)
        return zero_gradient(model, criterion), 0, zeroed(logged)

    def in_precision(self, model: torch.nn.Module) -> Any:
        """The model as --autocast computes it; the model itself without that option."""
        return model if self.cfg.autocast == "none" else Autocast(model, torch.bfloat16)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """For what a criterion computes besides its losses, which keep to float32: a product with the token table."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.cfg.autocast != "none")

    def valid_step(
        self, sample: dict[str, Any], model: torch.nn.Module, criterion: torch.nn.Module
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Fairseq's step, in the precision of --autocast."""
        self.validating = True
        with self.autocast(loss_device(model)):
            step: tuple[Tensor, Any, dict[str, Any]] = super().valid_step(sample, self.in_precision(model), criterion)
        return step

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's sums and, in validation, the figures over the whole split."""
        super().reduce_metrics(on_cpu(logging_outputs), criterion)
        if self.validating:
            for name, value in self.figures.items():
                metrics.log_scalar(name, value, round=2)

    def optimizer_step(self, optimizer: Any, model: torch.nn.Module, update_num: int) -> None:
        """Fairseq's step, unless no batch of this update counts: momentum and decay must not act alone."""
        if self.kept_in_update == {"update": update_num, "kept": 0}:
            return
        super().optimizer_step(optimizer, model, update_num)

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this task, under its class's name, as fairseq looks for it."""
        state = {
            "skipped_nonfinite": self.skipped,
            "early_stopping": dict(early_stopping()),
            "parts": self.parts(),
            "dictionary": self.dictionary_identity(),
            "validation": self.validation_identity(),
            "places": relative_places(getattr(self.model, "cfg", None), self.cfg.save_dir),
        }
        return {type(self).__name__: state}

    def dictionary_identity(self) -> dict[str, int]:
        """Number of symbols and CRC-32 of their names in order, by which another dictionary is noticed."""
        symbols = self.source_dictionary.symbols
        return {"symbols": len(symbols), "crc32": checksum(["\n".join(symbols).encode()])}

    def parts(self) -> dict[str, list[int]]:
        """Part of the training data -> number of samples and CRC-32 of their lengths, by which a change is noticed."""
        dataset = self.trained_on
        pairs = zip(dataset.names, dataset.parts, strict=True) if dataset is not None else ()
        return {name: [len(part), checksum([lengths(part)])] for name, part in pairs}

    def validation_identity(self) -> dict[str, int]:
        """Identity of the validation data, by which values measured on other data are recognised; empty without.

        Returns:
            split -> CRC-32 of the names and contents of its files, and of all that its parts read.
        """
        found = self.validated_on
        for split, dataset in self.datasets.items():
            if split in found or dataset is self.trained_on or not isinstance(dataset, TemperatureSampledDataset):
                continue
            found[split] = checksum(self._validation_blocks(split, dataset))
        return dict(found)

    def _validation_blocks(self, split: str, dataset: TemperatureSampledDataset) -> Iterator[bytes]:
        for directory in utils.split_paths(self.cfg.data):
            for file in sorted(path for path in Path(directory).glob(f"{split}.*") if path.suffix in DATA_FILES):
                yield from (file.name.encode(), file.read_bytes())
        for name, part in zip(dataset.names, dataset.parts, strict=True):
            yield from (name.encode(), lengths(part), *self.content_elsewhere(part))

    def content_elsewhere(self, part: RowDataset) -> Iterable[bytes]:
        """What a part reads beside the data directory, such as features."""
        return ()

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Continue counting where the checkpoint stopped."""
        self.skipped = int(state.get("skipped_nonfinite", 0))
        self.stored_parts = state.get("parts")
        early_stopping().update(state.get("early_stopping", {}))

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model; from a checkpoint, only one of this project.

        Others of fairseq evaluate strings of their options as Python, and a checkpoint may come from anywhere.
        """
        kind = model_class(cfg)
        if from_checkpoint and (kind is None or kind.__module__.split(".")[0] != __name__.split(".")[0]):
            raise UserError(
                f"the checkpoint holds a model {getattr(cfg, '_name', None)!r}, which is not of this project; options "
                "of other models can run code, so load it with the task it was trained with if you trust it"
            )
        if from_checkpoint and kind is not None:
            with open_dict(cfg):
                cfg.update(missing_options(MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[cfg._name]], cfg))
            kind.use_stored_weights(cfg)  # the archives may be elsewhere by now
        self.model = super().build_model(cfg, from_checkpoint)
        model: torch.nn.Module = self.model
        return model

    def get_batch_iterator(self, dataset: TemperatureSampledDataset, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's; where samples are redrawn, the loader processes of the epoch before end here."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        before = self.iterators.get(id(dataset))
        if before is not iterator:
            discard(before)
        self.iterators[id(dataset)] = iterator
        return iterator

    def can_reuse_epoch_itr(self, dataset: TemperatureSampledDataset) -> bool:
        """Only where samples are not redrawn."""
        return dataset.can_reuse_epoch_itr_across_epochs

    def filter_indices_by_size(
        self, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        """Refuse samples that are too long, in one sentence: fairseq would count and forget them.

        Those that training may leave out (--skip-budget) have been left out when the data were read.
        """
        kept, dropped = dataset.filter_indices_by_size(indices, max_positions)
        if dropped:
            raise UserError(
                f"{len(dropped)} samples are longer than {max_positions} tokens (the first has "
                f"{dataset.size(dropped[0])}); nothing is left out here: {self.too_long}"
            )
        return kept


def model_class(cfg: Any) -> Any:
    """The registered class behind a model's options; None for an unknown name."""
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    return ARCH_MODEL_REGISTRY.get(name) if isinstance(name, str) else None


def loss_device(model: torch.nn.Module) -> torch.device:
    """Where a model computes."""
    return next(model.parameters()).device


def on_cpu(logging_outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same sums on the CPU, brought there by one copy: each number alone would make it wait for a GPU."""
    numbers = [
        value for output in logging_outputs for value in output.values() if isinstance(value, Tensor) and value.is_cuda
    ]
    if not numbers:
        return [dict(output) for output in logging_outputs]
    # In float64 every float32 and every count keeps its value.
    copied = iter(torch.stack([number.detach().double().reshape(()) for number in numbers]).cpu().unbind())
    return [
        {
            name: next(copied).to(value.dtype) if isinstance(value, Tensor) and value.is_cuda else value
            for name, value in output.items()
        }
        for output in logging_outputs
    ]


def _nothing() -> None:
    """Default hook between batches: do nothing."""


def check_names(given: Sequence[str], known: Sequence[str], option: str) -> None:
    """Refuse names outside a list with a sentence."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UserError(f"{option}: {', '.join(unknown)} is not among {', '.join(known)}")
