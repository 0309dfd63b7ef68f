"""Encoding of texts and images, features end to end, and the metrics of retrieval."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._clip import save_clip, save_photos
from benchmarks.gpu.measuring import PRECISIONS, Report, Sizes, precision_of
from benchmarks.gpu.models import caption_tokens, dictionary, mclip
from mclip_fairseq.cli.features import main as mclip_features
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks
from mclip_fairseq.formats.towers import TrainedTower
from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.models.teacher import DualEncoderTeacher


def no_teacher() -> Any:
    """Texts are encoded without the image tower."""
    raise NotImplementedError


def texts(report: Report, size: Sizes) -> None:
    """`MultilingualCLIP.encode_text` from token ids, beside the bare model on a batch that is there already."""
    pieces = dictionary(size.entries)
    module = mclip("base", pieces, size.tiny, report.device)
    tokens, _ = caption_tokens(size.texts, size.longest, pieces)
    bare = tokens[: size.batch].to(report.device)
    for dtype in (torch.float32, torch.bfloat16) if report.on_gpu else (torch.float32,):
        tower = TrainedTower(module, SimpleNamespace(dictionary=pieces), "made-up", [], no_teacher)  # type: ignore[arg-type]
        model = MultilingualCLIP(tower, report.device, dtype)
        name = str(dtype).removeprefix("torch.")
        took = report.seconds(partial(model.encode_text, tokens, batch_size=1024))
        report.add("texts", f"encode_text, XLM-R base, weights in {name}", texts_s=size.texts / took)
        with torch.inference_mode():
            took = report.seconds_back_to_back(lambda: module.encode_text(bare))
        report.add("texts", f"the model alone, padded to {size.longest}, {name}", texts_s=len(bare) / took)


def images(report: Report, size: Sizes) -> None:
    """The image tower on pixels that are on the device, and on such that are sent there."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = DualEncoderTeacher.from_pretrained(save_clip(Path(folder), size.tiny)).to(report.device)
    pixels = torch.randn(size.images, 3, teacher.image_size, teacher.image_size)
    sources = {"on the device": pixels.to(report.device), "from pageable memory": pixels}
    if report.on_gpu:
        sources["from pinned memory"] = pixels.pin_memory()
    for precision in PRECISIONS:
        for place, source in sources.items():
            with precision_of(precision, report.device), torch.inference_mode():
                took = report.seconds_back_to_back(partial(sent, teacher, source, report.device))
            report.add("images", f"ViT-B/32, pixels {place}, {precision}", images_s=size.images / took)


def sent(teacher: DualEncoderTeacher, pixels: Tensor, device: torch.device) -> Tensor:
    """Features of pixels that are sent to the device first."""
    return teacher.encode_image(pixels.to(device, non_blocking=True))


def features(report: Report, size: Sizes) -> None:
    """`mclip-features` from JPEGs to a feature directory, beside the image tower alone on as many images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = save_clip(folder / "clip", size.tiny)
        save_photos(folder / "photos", size.photos)
        teacher = DualEncoderTeacher.from_pretrained(clip).to(report.device)
        pixels = torch.randn(min(256, size.photos), 3, teacher.image_size, teacher.image_size, device=report.device)
        for dtype in ("float32", "bfloat16") if report.on_gpu else ("float32",):
            with precision_of("bf16" if dtype == "bfloat16" else "fp32", report.device), torch.inference_mode():
                bare = len(pixels) / report.seconds_back_to_back(lambda: teacher.encode_image(pixels))
            start = time.perf_counter()
            command = ["--model", clip, "--images", folder / "photos", "--output", folder / dtype, "--dtype", dtype]
            if mclip_features([*map(str, command), "--device", report.device.type]):
                raise RuntimeError("mclip-features failed")
            speed = size.photos / (time.perf_counter() - start)
            report.add("features", f"mclip-features, ViT-B/32, {dtype}", images_s=speed, share_of_bare=speed / bare)


def retrieval(report: Report, size: Sizes) -> None:
    """Ranks of five captions per image on the CPU and on the device, which must agree."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(5 * size.gallery) // 5
    image = F.normalize(torch.randn(size.gallery, 512, generator=generator), dim=1)
    text = F.normalize(image[own] + 2 * torch.randn(len(own), 512, generator=generator), dim=1)
    found = []
    for device in ("cpu", report.device):
        queries, gallery, answers = text.to(device), image.to(device), own.to(device)
        report.synchronise()
        start = time.perf_counter()
        ranks = retrieval_ranks(queries, gallery, answers)
        found.append((ranks.t2i.cpu(), ranks.i2t.cpu()))
        report.add("retrieval", f"{size.gallery} images, {len(own)} captions, {device}", s=time.perf_counter() - start)
    differing = sum(int((one != other).sum()) for one, other in zip(*found, strict=True))
    report.add("retrieval", "ranks that differ", differing=differing)
