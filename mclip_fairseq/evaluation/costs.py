"""What a model costs: parameters, memory, and its speed on this machine."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.machine import cores

TEXTS = (  # captions of usual length
    "two children play football on a meadow in front of an old house",
    "ein Mann mit einem roten Hut repariert sein Fahrrad am Straßenrand",
    "une femme assise sur un banc lit un journal près de la fontaine",
    "starší pán krmí holuby na náměstí plném lidí",
    "女の子が黄色い傘を差して雨の中を歩いている",
    "собака прыгает через бревно в осеннем лесу",
    "طفل يحمل بالونا أزرق أمام متجر صغير",
    "一位厨师在露天市场里准备面条",
)
BATCH, IMAGE_BATCH, PICTURE = 64, 16, (640, 480)
SECONDS = 2.0  # of each measurement, at least


def image_tower(model: Any) -> nn.Module | None:
    """The image tower beside the model itself; None where there is none, or not on this machine."""
    try:
        tower: nn.Module | None = model.tower.image_module
    except UserError:
        return None
    return tower


def tensors_of(model: Any, with_buffers: bool = False) -> list[Tensor]:
    """Weights of both towers of a `MultilingualCLIP`, shared ones once."""
    modules = [module for module in (model.tower.module, image_tower(model)) if module is not None]
    found = [tensor for module in modules for tensor in module.parameters()]
    found += [tensor for module in modules for tensor in module.buffers()] if with_buffers else []
    return list({id(tensor): tensor for tensor in found}.values())


def count_parameters(model: Any) -> int:
    """Parameters of both towers of a `MultilingualCLIP`, shared ones once."""
    return sum(weight.numel() for weight in tensors_of(model))


def measure_costs(model: Any, seconds: float | None = None) -> dict[str, Any]:
    """What a `MultilingualCLIP` needs on this machine.

    Args:
        model: as it is evaluated: on its device, in its type.
        seconds: length of each of the two measurements, at least; None is `SECONDS`.

    Returns:
        `dim`; `parameters`; `memory`, bytes of the weights; `texts_per_second`, captions of about a dozen words in
        batches of 64; `images_per_second`, decoded pictures of 640 x 480 in batches of 16, their preprocessing
        included, None without an image tower; `machine`.
    """
    seconds = SECONDS if seconds is None else seconds
    reader = model if model.reads_any_language else model.for_language(model.languages[-1])
    texts = [TEXTS[number % len(TEXTS)] for number in range(BATCH)]
    costs = {
        "dim": model.dim,
        "parameters": count_parameters(model),
        "memory": sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model, with_buffers=True)),
        "texts_per_second": rate(lambda: reader.encode_text(texts, BATCH), BATCH, seconds),
        "images_per_second": None,
        "machine": machine_of(model.device),
    }
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (IMAGE_BATCH, 12, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels).resize(PICTURE) for pixels in small]
    with contextlib.suppress(UserError):  # no image tower
        costs["images_per_second"] = rate(lambda: model.encode_image(pictures, IMAGE_BATCH), IMAGE_BATCH, seconds)
    return costs


def rate(encode: Callable[[], Tensor], count: int, seconds: float) -> float:
    """Inputs per second of a function that encodes `count` of them, after one call that is not measured."""
    encode()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        encode()
        calls += 1
    return calls * count / (time.perf_counter() - start)


def machine_of(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} on {cores()} {platform.machine()} cores"
