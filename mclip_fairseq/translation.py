"""Captions into other languages by a trained MTE, shard by shard: what `mclip-translate` does.

A run writes `partial/LANG-00000.tsv` and so on, each file complete or not at all; the machine that finds all of them
joins them into `LANG.tsv` and writes `manifest.json`.
"""

from __future__ import annotations

import hashlib
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mclip_fairseq.registration import import_components
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import file_sha256, read_json, read_lines, write_bytes, write_json
from mclip_fairseq.storage.pieces import DICTIONARY, SENTENCEPIECE
from mclip_fairseq.storage.texts import is_blank

MANIFEST, PARTIAL = "manifest.json", "partial"
EMPTY = "the caption is empty"
Captions = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TranslationSettings:
    """How captions are translated.

    Attributes:
        source: their language.
        targets: the languages to translate into.
        beam: hypotheses that are followed.
        batch_size: captions at once.
        shard_rows: captions per file until all is joined.
        skip_budget: captions that may be left out because they, or their translations, are empty.
        machine: which of the machines that share the work this is, from 0.
        machines: how many share the work.
        dtype: `float32`, or the type that autocast computes in.
    """

    source: str
    targets: tuple[str, ...]
    beam: int = 5
    batch_size: int = 64
    shard_rows: int = 4096
    skip_budget: int = 0
    machine: int = 0
    machines: int = 1
    dtype: str = "float32"


class Translator:
    """A trained MTE with its tokenizer.

    Args:
        checkpoint: of the task `mte`.
        tokenizer: directory with `dict.txt` and `sentencepiece.bpe.model`.
        device: where it runs.
        settings: beam and type.

    Raises:
        UserError: another kind of checkpoint, or a tokenizer that does not belong to it.
    """

    def __init__(self, checkpoint: Path, tokenizer: Path, device: torch.device, settings: TranslationSettings) -> None:
        import_components("models")  # fairseq, the right way, and our models with it
        from omegaconf import OmegaConf

        from mclip_fairseq.data.tokenizer import XLMRTokenizer
        from mclip_fairseq.tasks.mte import MTETask

        state = load_checkpoint(checkpoint)
        remedy = "give a checkpoint of the task mte"
        cfg = check_fields(checkpoint, state.get("cfg"), {"model": dict, "task": dict}, remedy)
        check_fields(checkpoint, cfg["task"], {"_name": str, "langs": str}, remedy)
        if cfg["task"]["_name"] != "mte":
            raise UserError(f"{checkpoint}: is of the task {cfg['task']['_name']!r}; {remedy}")
        self.tokenizer = XLMRTokenizer(tokenizer)
        options = {**cfg["task"], "langs": cfg["model"].get("langs") or cfg["task"]["langs"]}
        self.task = MTETask(Namespace(**options), self.tokenizer.dictionary)  # type: ignore[arg-type]
        self.model: Any = self.task.build_model(OmegaConf.create(cfg["model"]), from_checkpoint=True)
        try:
            self.model.load_state_dict(state["model"], strict=True)
        except RuntimeError as error:  # what torch says of weights that are missing, unknown or misshapen
            first = str(error).splitlines()[0]
            raise UserError(f"{checkpoint}: does not fit {tokenizer}/dict.txt: {first}; {remedy}") from error
        self.model.eval().to(device)
        self.device = device
        self.tokenizer.max_tokens = int(min(self.task.max_positions()[0], self.tokenizer.max_tokens))
        self.generator: Any = self.task.build_generator([self.model], Namespace(beam=settings.beam))
        self.dtype = getattr(torch, settings.dtype)

    @property
    def languages(self) -> list[str]:
        """The languages it was trained on."""
        return self.task.langs

    def translate(self, texts: Sequence[str], source: str, target: str, batch_size: int) -> list[str]:
        """Translate texts; longer ones than the model reads are cut.

        Args:
            texts: none of them empty.
            source: their language.
            target: the language to translate into.
            batch_size: texts at once; those of similar length share a batch.
        """
        from fairseq import utils

        from mclip_fairseq.data.parallel import ParallelDataset

        tokens = self.tokenizer.flat(texts)
        data = ParallelDataset(tokens, None, self.task.lang_id(source), self.task.lang_id(target))
        order = np.argsort(tokens.sizes, kind="stable")
        translations = [""] * len(texts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            sample: Any = utils.apply_to_sample(lambda tensor: tensor.to(self.device), data.rows(rows))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                hypotheses = self.task.inference_step(self.generator, [self.model], sample)
            for row, best in zip(rows, hypotheses, strict=True):
                pieces = self.tokenizer.dictionary.string(best[0]["tokens"].int().cpu(), "sentencepiece")
                translations[row] = " ".join(pieces.split())
        return translations


class TranslationWriter:
    """The files of a run; several machines may share them.

    Args:
        path: directory to make or to continue.
        captions: (id, caption) to translate.
        settings: how they are translated.
        checkpoint: of the translator, for its hash.
        tokenizer: directory of the translator's, for the hashes of its files.

    Raises:
        UserError: the directory was started with other captions, languages, settings, weights or tokenizer.
    """

    def __init__(
        self, path: Path, captions: Captions, settings: TranslationSettings, checkpoint: Path, tokenizer: Path
    ) -> None:
        self.path = path
        self.captions = captions
        self.settings = settings
        content = "".join(f"{name}\t{caption}\n" for name, caption in captions)
        self.plan = {
            "captions": hashlib.sha256(content.encode()).hexdigest(),
            "source": settings.source,
            "languages": list(settings.targets),
            "beam": settings.beam,
            "shard_rows": settings.shard_rows,
            "dtype": settings.dtype,
            "checkpoint": file_sha256(checkpoint),
            "tokenizer": [file_sha256(tokenizer / name) for name in (SENTENCEPIECE, DICTIONARY)],
        }
        started = path / MANIFEST if self.complete else path / PARTIAL / "plan.json"
        if not started.is_file():
            started.parent.mkdir(parents=True, exist_ok=True)
            write_json(started, self.plan)
        old = check_fields(started, read_json(started), {}, f"remove {path} and start again")
        # Earlier versions did not record the tokenizer, and computed in float32.
        old = {"dtype": "float32", **old}
        differing = [name for name, value in self.plan.items() if old.get(name, value) != value]
        if differing:
            raise UserError(
                f"{path}: was started with a different {' and '.join(differing)}; remove it, use another directory, or "
                "use the settings it was started with"
            )

    @property
    def complete(self) -> bool:
        """Whether everything is translated and joined."""
        return (self.path / MANIFEST).is_file()

    def shards(self) -> list[tuple[str, int]]:
        """(language, number) of every shard."""
        count = -(-len(self.captions) // self.settings.shard_rows)
        return [(language, number) for number in range(count) for language in self.settings.targets]

    def file(self, language: str, number: int) -> Path:
        """Where a shard is."""
        return self.path / PARTIAL / f"{language}-{number:05d}.tsv"

    def pending(self, machine: int = 0, machines: int = 1) -> list[tuple[str, int]]:
        """The shards that a machine still has to translate."""
        own = [] if self.complete else self.shards()[machine::machines]
        return [shard for shard in own if not self.file(*shard).is_file()]

    def rows(self, number: int) -> Captions:
        """The captions of a shard that are not empty."""
        size = self.settings.shard_rows
        return [row for row in self.captions[number * size : (number + 1) * size] if not is_blank(row[1])]

    def write(self, language: str, number: int, translations: Mapping[str, str]) -> None:
        """Write a shard: id -> translation."""
        lines = "".join(f"{name}\t{translation}\n" for name, translation in translations.items())
        write_bytes(self.file(language, number), lines.encode())

    def finalize(self) -> bool:
        """Join the shards if all exist.

        Returns:
            Whether the directory is complete; False while shards of other machines are missing.

        Raises:
            UserError: more translations are missing than the budget allows; the shards stay.
        """
        if self.complete or self.pending():
            return self.complete
        missing: list[tuple[str, str, str]] = []
        for language in self.settings.targets:
            lines = [line for own, number in self.shards() if own == language for line in self._lines(own, number)]
            present = {line.split("\t", 1)[0] for line in lines}
            for name, caption in self.captions:
                if name not in present:
                    missing.append((name, language, "its translation is empty" if not is_blank(caption) else EMPTY))
            write_bytes(self.path / f"{language}.tsv", "".join(f"{line}\n" for line in lines).encode())
        check_budget(missing, self.settings.skip_budget, str(self.path))
        if missing:
            write_bytes(self.path / "skipped.tsv", "".join("\t".join(row) + "\n" for row in missing).encode())
        write_json(self.path / MANIFEST, {**self.plan, "count": len(self.captions), "skipped": len(missing)})
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        return True

    def _lines(self, language: str, number: int) -> list[str]:
        return [line for line in read_lines(self.file(language, number)) if line.split("\t", 1)[1]]


def check_budget(missing: Sequence[tuple[str, str, str]], budget: int, place: str) -> None:
    """Refuse captions without a translation beyond the budget.

    Raises:
        UserError: listing them.
    """
    if len(missing) > budget:
        lines = "".join(f"\n  {name} ({language}): {reason}" for name, language, reason in missing)
        raise UserError(
            f"{place}: {len(missing)} captions have no translation; fix them, remove them, or leave them out with "
            f"--skip-budget {len(missing)}:{lines}"
        )


def translate_captions(
    captions: Captions, translator: Translator, writer: TranslationWriter, settings: TranslationSettings
) -> bool:
    """Translate the shards of this machine that are missing, and join all of them if they are complete.

    Args:
        captions: (id, caption).
        translator: the model.
        writer: the files.
        settings: how.

    Returns:
        Whether the directory is complete.

    Raises:
        UserError: a language that the model was not trained on, or captions that cannot be translated.
    """
    unknown = [name for name in (settings.source, *settings.targets) if name not in translator.languages]
    if unknown:
        raise UserError(f"the model has no language {unknown[0]}; choose from {', '.join(translator.languages)}")
    empty = [(name, language, EMPTY) for name, text in captions if is_blank(text) for language in settings.targets]
    check_budget(empty, settings.skip_budget, str(writer.path))
    pending = writer.pending(settings.machine, settings.machines)
    total = sum(len(writer.rows(number)) for _, number in pending)
    with tqdm(total=total, unit="caption", disable=None) as progress:
        for language, number in pending:
            rows = writer.rows(number)
            texts = [text for _, text in rows]
            translations = translator.translate(texts, settings.source, language, settings.batch_size)
            writer.write(language, number, dict(zip((name for name, _ in rows), translations, strict=True)))
            progress.update(len(rows))
    return writer.finalize()
