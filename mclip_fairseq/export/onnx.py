"""Both towers as ONNX, checked against torch, and an int8 text tower with its measured loss of recall.

text.onnx        input_ids (batch, length) int64 -> text_embeds (batch, dim), L2-normalised
image.onnx       pixel_values (batch, channels, height, width) float32 -> image_embeds (batch, dim), L2-normalised
text.int8.onnx   the text tower with int8 weights
report.json      largest differences from torch; recall of the int8 tower beside that of float32
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mclip_fairseq.encoding.captions import read_caption_files
from mclip_fairseq.encoding.galleries import IdIndex
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import write_json

TOLERANCE = 1e-4
BATCH = 64
OPSET = 18
MAX_LENGTH = 8192
Session = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RecallData:
    """What the recall of an int8 tower is measured on.

    Attributes:
        captions: `LANG=FILE` of captions.
        ids: `[LANG=]FILE` of their image ids.
        features: feature directory of the images.
    """

    captions: Sequence[str]
    ids: Sequence[str]
    features: Path


def export_onnx(tower: TrainedTower, output: Path, int8: RecallData | None = None) -> dict[str, Any]:
    """Write both towers, or the text tower of a model without images, and compare them with torch.

    Args:
        tower: the model, on the CPU.
        output: directory to make.
        int8: also write an int8 text tower, and measure it on this.

    Returns:
        the report, which is also written.

    Raises:
        UserError: onnx is not installed, or the numbers of a tower are not those of torch.
    """
    for module in ("onnx", "onnxruntime", "onnxscript"):
        import_extra(module, "export")
    output.mkdir(parents=True, exist_ok=True)
    text, image = output / "text.onnx", output / "image.onnx"
    text_path, tokens = tower.module.portable_text(), sample_tokens(tower)
    differences = {"text": write_tower(text_path, text, "input_ids", "text_embeds", tokens, text_axes(tower))}
    if tower.module.has_images:
        size = tower.teacher.image_size
        pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
        image_path, batches = tower.module.portable_image(tower.teacher), [pixels, pixels[:1]]
        differences["image"] = write_tower(image_path, image, "pixel_values", "image_embeds", batches, image_axes())
    report: dict[str, Any] = {"largest_difference": differences, "tolerance": TOLERANCE}
    for name, difference in differences.items():
        if difference > TOLERANCE:
            raise UserError(
                f"{output}/{name}.onnx: differs from torch by {difference:.1e}, more than {TOLERANCE}; try other "
                "versions of onnxscript and onnxruntime"
            )
    if int8 is not None:
        write_int8(text, output / "text.int8.onnx")
        report["int8"] = measure_int8(tower, output, int8)
    write_json(output / "report.json", report)
    return report


def sample_tokens(tower: TrainedTower) -> list[Tensor]:
    """Token ids to compare on: several lengths, a single text, an empty one, padding on either side."""
    texts = ["a dog", "ein Hund am Strand, der im Sand nach einem alten Knochen gräbt", "虹", ""]
    right = tower.tokenizer(texts)
    pad = tower.tokenizer.dictionary.pad()
    left = torch.stack([torch.cat([row[row == pad], row[row != pad]]) for row in right])
    return [right, left, tower.tokenizer(texts[:1])]


def text_axes(tower: TrainedTower) -> dict[int, Any]:
    """Batch and length are free, as far as the model has positions."""
    longest = min(MAX_LENGTH, tower.module.max_positions())
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}


def image_axes() -> dict[int, Any]:
    """The batch is free."""
    return {0: torch.export.Dim("batch")}


def write_tower(
    module: nn.Module, file: Path, name: str, result: str, batches: Sequence[Tensor], axes: dict[int, Any]
) -> float:
    """Export one tower; returns the largest difference from torch over the batches."""
    program = torch.onnx.export(
        module,
        (batches[0],),
        dynamo=True,
        input_names=[name],
        output_names=[result],
        dynamic_shapes=(axes,),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    # The exporter notes at every node which file of this machine it comes from.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(file))
    run = session(file)
    with torch.no_grad():
        return max(float((torch.from_numpy(run(batch.numpy())) - module(batch)).abs().max()) for batch in batches)


def session(file: Path) -> Session:
    """A function that runs a tower of one input and one output."""
    import onnxruntime

    runtime = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = runtime.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        result: np.ndarray = runtime.run(None, {name: batch})[0]
        return result

    return run


def write_int8(source: Path, output: Path) -> None:
    """Quantise a tower: weights to int8 now, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, output, weight_type=QuantType.QInt8)


def measure_int8(tower: TrainedTower, folder: Path, data: RecallData) -> dict[str, dict[str, float]]:
    """Language -> mean recall (strict) of the float32 and the int8 text tower."""
    store = FeatureStore.open(data.features)
    index = IdIndex(store.ids, data.features)
    towers = {"float32": session(folder / "text.onnx"), "int8": session(folder / "text.int8.onnx")}
    recalls = {}
    for captions in read_caption_files(data.captions, data.ids):
        rows = index.rows(captions)
        # Only images with a caption are searched, each once: `retrieval_metrics` takes rows of this smaller gallery.
        used = np.unique(rows)
        with torch.no_grad():
            image = tower.project(torch.from_numpy(np.asarray(store.take(used), dtype=np.float32)))
        own_image = torch.from_numpy(np.searchsorted(used, rows))
        recalls[captions.language] = {
            name: retrieval_metrics(encode_captions(tower, run, captions.texts), image, own_image)["mean_recall"]
            for name, run in towers.items()
        }
    return recalls


def encode_captions(tower: TrainedTower, run: Session, texts: Sequence[str]) -> Tensor:
    """(texts, dim) by an exported text tower."""
    batches = [run(tower.tokenizer(texts[i : i + BATCH]).numpy()) for i in range(0, len(texts), BATCH)]
    return torch.from_numpy(np.concatenate(batches))
