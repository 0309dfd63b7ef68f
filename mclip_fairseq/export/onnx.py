"""Both towers as ONNX, checked against torch, and an int8 text tower with its measured loss of recall.

text.onnx        input_ids (batch, length) int64 -> text_embeds (batch, dim), L2-normalised
image.onnx       pixel_values (batch, channels, height, width) float32 -> image_embeds (batch, dim), L2-normalised
text.int8.onnx   the text tower with int8 weights
report.json      largest differences to torch; recall of the int8 tower beside that of float32
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mclip_fairseq.encoding.captions import Captions, read_caption_files
from mclip_fairseq.encoding.galleries import IdIndex
from mclip_fairseq.evaluation import retrieval_metrics
from mclip_fairseq.export.portable import PortableImage, PortableText
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.files import write_json

TOLERANCE = 1e-4
BATCH = 64
OPSET = 18


def export_onnx(
    tower: TrainedTower,
    output: Path,
    int8: bool = False,
    captions: Sequence[str] = (),
    ids: Sequence[str] = (),
    features: Path | None = None,
) -> dict[str, Any]:
    """Write the towers and check them; returns the report.

    Args:
        tower: the model, on the CPU.
        output: directory to make.
        int8: also write the int8 text tower, measured on
        captions: `LANG=FILE` of captions,
        ids: their image ids, and
        features: the feature directory of the images.

    Raises:
        UserError: onnx is not installed, or a tower's numbers are not those of torch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs a package that is not here ({error.name}): pip install mclip_fairseq[export]"
        ) from error
    output.mkdir(parents=True, exist_ok=True)
    text, image = output / "text.onnx", output / "image.onnx"
    generator = torch.Generator().manual_seed(1)
    size = tower.teacher.image_size
    pixels = torch.rand(3, 3, size, size, generator=generator)
    differences = {
        "text": write_tower(PortableText(tower), text, "input_ids", "text_embeds", check_tokens(tower), text_axes()),
        "image": write_tower(
            PortableImage(tower), image, "pixel_values", "image_embeds", [pixels, pixels[:1]], image_axes()
        ),
    }
    report: dict[str, Any] = {"largest_difference": differences, "tolerance": TOLERANCE}
    for name, difference in differences.items():
        if difference > TOLERANCE:
            raise UserError(f"{output}/{name}.onnx: differs from torch by {difference:.1e}, more than {TOLERANCE}")
    if int8:
        assert features is not None
        write_int8(text, output / "text.int8.onnx")
        report["int8"] = measure_int8(tower, output, read_caption_files(captions, ids), features)
    write_json(output / "report.json", report)
    found = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    print(f"Written: {output}; largest difference to torch: {found}")
    for lang, row in report.get("int8", {}).items():
        print(f"int8 text tower, {lang}: mean recall {row['float32']:.1f} -> {row['int8']:.1f}")
    return report


def check_tokens(tower: TrainedTower) -> list[Tensor]:
    """Batches of several shapes, padded on either side."""
    texts = ["a dog", "ein Hund am Strand, der im Sand nach einem alten Knochen gräbt", "虹", ""]
    right = tower.tokenizer(texts)
    pad = tower.tokenizer.dictionary.pad()
    left = torch.stack([torch.cat([row[row == pad], row[row != pad]]) for row in right])
    return [right, left, tower.tokenizer(texts[:1])]


def text_axes() -> dict[int, Any]:
    """Dynamic batch and length."""
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=8192)}


def image_axes() -> dict[int, Any]:
    """Dynamic batch."""
    return {0: torch.export.Dim("batch")}


def write_tower(
    module: nn.Module, file: Path, name: str, result: str, batches: Sequence[Tensor], axes: dict[int, Any]
) -> float:
    """Export one tower; returns the largest difference to torch over the batches."""
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
    program.save(str(file))
    run = session(file)
    with torch.no_grad():
        return max(float((torch.from_numpy(run(batch.numpy())) - module(batch)).abs().max()) for batch in batches)


def session(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a tower of one input and one output."""
    import onnxruntime

    found = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = found.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        result: np.ndarray = found.run(None, {name: batch})[0]
        return result

    return run


def write_int8(source: Path, output: Path) -> None:
    """Quantise the weights of a tower to int8, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, output, weight_type=QuantType.QInt8)


def measure_int8(
    tower: TrainedTower, folder: Path, captions: Sequence[Captions], features: Path
) -> dict[str, dict[str, float]]:
    """Language -> mean recall (strict) of the float32 and the int8 text tower."""
    store = FeatureStore.open(features)
    index = IdIndex(store.ids, features)
    towers = {"float32": session(folder / "text.onnx"), "int8": session(folder / "text.int8.onnx")}
    found = {}
    for part in captions:
        rows = index.rows(part)
        used = np.unique(rows)
        with torch.no_grad():
            image = tower.project(torch.from_numpy(np.asarray(store.take(used), dtype=np.float32)))
        own = torch.from_numpy(np.searchsorted(used, rows))
        found[part.language] = {
            name: retrieval_metrics(encode(tower, run, part.texts), image, own)["mean_recall"]
            for name, run in towers.items()
        }
    return found


def encode(tower: TrainedTower, run: Callable[[np.ndarray], np.ndarray], texts: Sequence[str]) -> Tensor:
    """(texts, dim) by an exported text tower."""
    parts = [run(tower.tokenizer(texts[i : i + BATCH]).numpy()) for i in range(0, len(texts), BATCH)]
    return torch.from_numpy(np.concatenate(parts))
