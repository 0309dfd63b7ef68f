"""Retrieval protocols and what they count; needs nothing, so that `--help` can list them."""

PROTOCOLS = {
    "strict": "captions rank all images, each captioned image ranks all captions, as in CLIP_benchmark (default)",
    "released": "hits are distinct images, and an image is a query once per caption, as in the released mCLIP script",
    "caption_max": "an image is found as soon as its best caption is, as in CLIP4Clip and MLA",
}
