"""The files of a user's own data: what is in a directory, in which format, of which split and language."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from corpora.files import require
from corpora.sources import Sources
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_json

# Endings, less those of compression, -> format.
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
    ".tgz": "tar",
}
COMPRESSED = (".gz", ".bz2", ".xz")
FOLDER = "folder"
# Names under which splits are known -> name here.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# ISO 639-1.
LISTED = """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne
    ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st
    su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
CODES = frozenset(LISTED.split())
CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")


@dataclass(frozen=True)
class Part:
    """A file of the data, or a folder of images with caption files.

    Attributes:
        path: where it is.
        format: a value of `FORMATS`, or `FOLDER`.
        split: of its captions; empty if it does not say.
        language: likewise.
        below: folder of its images below the image folder, with a slash at the end; empty for the image folder itself.
            For a tar, the folder that its images are written to.
    """

    path: Path
    format: str
    split: str = ""
    language: str = ""
    below: str = ""


def language_code(name: str, place: str) -> str:
    """A language's code in lower case, without the region of English, which the teacher reads in any spelling.

    Raises:
        UserError: it is not a code.
    """
    code = name.strip().lower().replace("_", "-")
    if CODE.fullmatch(code) is None:
        raise UserError(f"{place}: the language {name!r} is not a code; write en for English, de for German and so on")
    return "en" if code.startswith("en-") else code


def split_name(name: str) -> str:
    """A split's name as this project has it: val, validation and dev are valid; others stay as they are."""
    return SPLITS.get(name.strip().lower(), name.strip())


def format_of(path: Path) -> str:
    """The format that a file's name tells; empty if it tells none."""
    suffix = next((suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() not in COMPRESSED), "")
    return FORMATS.get(suffix, "")


def language_of_name(path: Path) -> str:
    """The language that a file's name ends in, as in captions.de.csv, captions_de.csv and de.csv; empty if in none."""
    stem = path.name.lower()
    while (ending := Path(stem).suffix) in (*FORMATS, *COMPRESSED):
        stem = stem.removesuffix(ending)
    word = re.split(r"[._-]", stem)[-1]
    return word if word in CODES else ""


def parts_of(path: Path, given: Part) -> list[Part]:
    """What a path of the command line stands for.

    Args:
        path: a file or directory.
        given: format, split and language that the user named; empty where not.

    Raises:
        UserError: it does not exist, is in no known format, or is an incomplete dataset.
    """
    if path.is_dir() and given.format in ("", FOLDER):
        return parts_of_folder(path, given) if not given.format else [replace(given, path=path)]
    if not path.is_file():
        raise UserError(f"{path}: not found; give a file or a directory")
    kind = given.format or format_of(path)
    if not kind:
        raise UserError(
            f"{path}: its name does not tell its format; rename it to .csv, .tsv, .jsonl, .parquet or .tar, or give "
            "--format"
        )
    # Shards of two splits often have the same names.
    below = f"{given.split}/" if given.split and kind == "tar" else ""
    return [replace(given, path=path, format=kind, language=given.language or language_of_name(path), below=below)]


def parts_of_folder(folder: Path, given: Part) -> list[Part]:
    """The parts of a directory of Hugging Face datasets, of Parquet files or tars, or of images with their captions."""
    if (folder / "dataset_dict.json").is_file():
        names = read_names(folder / "dataset_dict.json", "splits")
        return [part for name in names for part in saved_parts(folder / name, given, given.split or split_name(name))]
    if (folder / "state.json").is_file():
        return saved_parts(folder, given, given.split)
    if listed := list(metadata_parts(folder, given)):
        return listed
    for ending in (".parquet", ".tar"):
        files = sorted(folder.rglob(f"*{ending}"))
        if files:
            return [
                replace(
                    given,
                    path=file,
                    format=FORMATS[ending],
                    split=given.split or split_of_file(file, folder),
                    below=below_folder(file, folder) if ending == ".tar" else "",
                )
                for file in files
            ]
    return [replace(given, path=folder, format=FOLDER)]


def read_names(path: Path, key: str) -> list[str]:
    """File names that a file of `datasets` lists.

    Raises:
        UserError: it lists none, or a name that is not plain.
    """
    names = require(read_json(path), key, list, str(path))
    plain = [name for name in names if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and name.strip(".")]
    if not names or plain != names:
        raise UserError(f"{path}: {key!r} is not a list of file names; save the dataset again")
    return plain


def saved_parts(folder: Path, given: Part, split: str) -> list[Part]:
    """The Arrow files of a dataset that `save_to_disk` of Hugging Face's `datasets` wrote.

    Raises:
        UserError: a file is missing.
    """
    path = folder / "state.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; save the dataset again")
    entries = require(read_json(path), "_data_files", list, str(path))
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    files = [folder / name for name in names if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)]
    if not files or len(files) < len(names):
        raise UserError(f"{path}: names no data files; save the dataset again")
    return [replace(given, path=file, format="arrow", split=split) for file in files]


def metadata_parts(folder: Path, given: Part) -> Iterator[Part]:
    """Tables `metadata.*` beside images, in the folder or in one below it for each split."""
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and path.name.lower() in SPLITS)]
    for place in places:
        for name in METADATA:
            if (place / name).is_file():
                split = given.split or (split_name(place.name) if place != folder else "")
                below = f"{place.name}/" if place != folder else ""
                yield replace(given, path=place / name, format=format_of(Path(name)), split=split, below=below)


def split_of_file(path: Path, folder: Path) -> str:
    """The split that a file's name begins with, as in train-00000-of-00001.parquet, or its folder's name is."""
    first = re.split(r"[^A-Za-z]", path.name, maxsplit=1)[0].lower()
    parents = [parent.name.lower() for parent in path.relative_to(folder).parents]
    return next((SPLITS[name] for name in (first, *parents) if name in SPLITS), "")


def below_folder(path: Path, folder: Path) -> str:
    """The path of a file's folder below another, with a slash at the end; empty if it is that folder."""
    parent = path.parent.relative_to(folder).as_posix()
    return "" if parent == "." else f"{parent}/"


def check_tars(parts: list[Part]) -> None:
    """Check that the images of two tars have different names.

    Raises:
        UserError: two tars would write the same names.
    """
    first: dict[str, Path] = {}
    for part in parts:
        name = part.below + part.path.name.partition(".")[0]
        if part.format == "tar" and first.setdefault(name, part.path) != part.path:
            raise UserError(f"{part.path}: its images would have the names of those of {first[name]}; rename one")


def register(parts: list[Part], sources: Sources) -> None:
    """Note the files, so that the manifest names them and none is overwritten."""
    for part in parts:
        if part.format == FOLDER:
            sources.folder(part.path, ".txt")
        else:
            sources.file(part.path)
