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
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.encoding.captions import read_caption_files
from mclip_fairseq.encoding.galleries import FeatureGallery, Gallery, ImageGallery
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.formats.towers import Tower, TrainedTower
from mclip_fairseq.inference import MultilingualCLIP
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
        features: feature directory of the images; or
        images: their folder.
    """

    captions: Sequence[str]
    ids: Sequence[str]
    features: Path | None = None
    images: Path | None = None

    def gallery(self) -> Gallery:
        """The images."""
        if self.features is not None:
            return FeatureGallery(FeatureStore.open(self.features), self.features)
        assert self.images is not None
        return ImageGallery(self.images)


@dataclass(frozen=True)
class Paths:
    """What is written as ONNX, and what it is compared on.

    Attributes:
        text: (batch, length) ids -> (batch, dim).
        image: (batch, channels, height, width) -> (batch, dim); None for a model without images.
        tokens: batches of ids.
        text_axes: the free axes of the ids.
    """

    text: nn.Module
    image: nn.Module | None
    tokens: Sequence[Tensor]
    text_axes: dict[int, Any]


def export_onnx(tower: TrainedTower, output: Path, int8: RecallData | None = None) -> dict[str, Any]:
    """Write the towers of a model with one text path; see `write_towers`."""
    module = tower.module
    image = None
    if module.has_images:
        image = module.portable_image(tower.teacher if module.image_transform is None else None)
    paths = Paths(module.portable_text(), image, sample_tokens(tower), text_axes(tower))
    return write_towers(tower, paths, output, int8)


def write_towers(tower: Tower, paths: Paths, output: Path, int8: RecallData | None) -> dict[str, Any]:
    """Write both towers, or the text tower of a model without images, and compare them with torch.

    Args:
        tower: the model, on the CPU.
        paths: its parts.
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
    differences = {"text": write_tower(paths.text, text, "input_ids", "text_embeds", paths.tokens, paths.text_axes)}
    if paths.image is not None:
        pixels = sample_pixels(tower)
        batches = [pixels, pixels[:1]]
        differences["image"] = write_tower(paths.image, image, "pixel_values", "image_embeds", batches, image_axes())
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


def sample_pixels(tower: Tower) -> Tensor:
    """(3, channels, height, width): three images of noise as the model sees them."""
    noise = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return tower.transform([Image.fromarray(image) for image in noise])


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
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The exporter's optimiser leaves shapes of tensors that it has changed since, which the quantiser's own inference
    # contradicts. Weights beside the file stay there.
    model = onnx.load(source, load_external_data=False)
    del model.graph.value_info[:]
    unshaped = source.with_name(f"unshaped-{source.name}")
    onnx.save(model, unshaped)
    quantize_dynamic(unshaped, output, weight_type=QuantType.QInt8)
    unshaped.unlink()


def measure_int8(tower: Tower, folder: Path, data: RecallData) -> dict[str, dict[str, float]]:
    """Language -> mean recall (strict) of the float32 and the int8 text tower."""
    gallery, model = data.gallery(), MultilingualCLIP(tower, device="cpu")
    towers = {"float32": session(folder / "text.onnx"), "int8": session(folder / "text.int8.onnx")}
    recalls = {}
    for captions in read_caption_files(data.captions, data.ids):
        rows = gallery.index.rows(captions)
        # Only images with a caption are searched, each once: `retrieval_metrics` takes rows of this smaller gallery.
        used = np.unique(rows)
        image, own_image = gallery.encode(model, used, BATCH), torch.from_numpy(np.searchsorted(used, rows))
        recalls[captions.language] = {
            name: retrieval_metrics(encode_captions(tower, run, captions.texts), image, own_image)["mean_recall"]
            for name, run in towers.items()
        }
    return recalls


def encode_captions(tower: Tower, run: Session, texts: Sequence[str]) -> Tensor:
    """(texts, dim) by an exported text tower."""
    batches = [run(tower.tokenizer(texts[i : i + BATCH]).numpy()) for i in range(0, len(texts), BATCH)]
    return torch.from_numpy(np.concatenate(batches))
