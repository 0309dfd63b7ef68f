"""Caption files with image ids: which caption, in which language, belongs to which image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines
from mclip_fairseq.storage.provenance import shareable
from mclip_fairseq.storage.texts import is_blank

TSV_SUFFIXES = (".tsv", ".tsv.gz")
OTHER_TABLES = (".csv", ".json", ".jsonl", ".ndjson")
# As in the token files of Flickr30k: 1000092795.jpg#0.
NUMBERED_ID = re.compile(r"\.[A-Za-z]{3,4}#\d+$")
QUOTED = "is quoted as csv writers do, and the quotes would become part of the caption; write the table without quoting"
HEADER_IDS = {"id", "image", "images", "image_id", "imageid", "image id", "img", "file", "filename", "file_name", "key"}
HEADER_TEXTS = {"caption", "captions", "text", "sentence", "comment", "description", "raw"}


@dataclass(frozen=True)
class Captions:
    """All captions of one language, in file order; none is ever left out.

    Attributes:
        language: its name, for example "de".
        path: the caption file.
        ids_path: the file that names the images: an ids file, or `path` itself for a `.tsv` file.
        texts: one caption per line.
        ids: the image id of each caption.
    """

    language: str
    path: Path
    ids_path: Path
    texts: list[str]
    ids: list[str]

    def describe(self) -> dict[str, object]:
        """Files, their SHA-256 and the counts, for a report."""
        facts: dict[str, object] = {"path": shareable(self.path), "sha256": file_sha256(self.path)}
        if self.ids_path != self.path:
            facts |= {"ids_path": shareable(self.ids_path), "ids_sha256": file_sha256(self.ids_path)}
        return facts | {"captions": len(self.texts), "images": len(set(self.ids))}


def read_language_captions(language: str, path: Path, ids_path: Path | None = None) -> Captions:
    """Read the captions of one language.

    Args:
        language: its name.
        path: UTF-8 text, plain or `.gz`. A `.tsv` file holds `id<TAB>caption` lines, any other file one caption per
            line.
        ids_path: the image id of each caption line; what follows a tab is ignored, because the ids files of the task
            `trikd` have a second column. Needed unless `path` is a `.tsv` file, which has its own.

    Raises:
        UserError: naming file and line: a file cannot be read, a line is empty, or the counts differ.
    """
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path}: is empty; give at least one caption")
    check_lines(path, lines)
    if is_tsv(path):
        check_table(path, lines)
        fields = [line.partition("\t") for line in lines]
        for number, (image_id, tab, text) in enumerate(fields, start=1):
            if is_blank(image_id) or not tab or is_blank(text):
                raise UserError(f"{path}, line {number}: is not 'image id, tab, caption'; complete the line")
        return Captions(language, path, path, [text for *_, text in fields], [i.strip() for i, *_ in fields])
    if ids_path is None:
        raise UserError(
            f"{path}: the captions of {language} have no image ids; give --ids with one id per line, or a .tsv file "
            "with 'image id, tab, caption' lines"
        )
    _check_no_empty_line(path, lines)
    check_no_tabs(path, lines)
    id_lines = read_lines(ids_path)
    check_lines(ids_path, id_lines)
    ids = [line.split("\t")[0].strip() for line in id_lines]
    _check_no_empty_line(ids_path, ids)
    if len(ids) != len(lines):
        raise UserError(
            f"{path}: has {len(lines)} captions, but {ids_path} has {len(ids)} image ids; line n of one must belong to "
            "line n of the other"
        )
    if len(ids) > 1 and all(map(_is_behind_its_id, lines, ids)):
        raise UserError(
            f"{path}, line 1: begins with the id of its image, as every line does, which would become a part of the "
            "caption; keep the caption only"
        )
    return Captions(language, path, ids_path, lines, ids)


def _is_behind_its_id(line: str, image_id: str) -> bool:
    """Whether a line is an image id, `#`, `,`, `;` or `|`, and more; a caption may well begin with the word `red`."""
    return line.startswith(image_id) and line.removeprefix(image_id).lstrip().startswith(("#", ",", ";", "|"))


def read_caption_files(captions: Sequence[str], ids: Sequence[str]) -> list[Captions]:
    """Read what the options `--captions LANG=FILE ...` and `--ids [LANG=]FILE ...` name.

    Raises:
        UserError: an option is malformed, contradictory, or names a file that cannot be used.
    """
    files = files_by_language(captions, "--captions")
    own, shared = _split_ids(ids, files)
    texts = {language for language, path in files.items() if not is_tsv(path)}
    if superfluous := sorted(own.keys() - texts):
        language = superfluous[0]
        raise UserError(
            f"--ids {language}={own[language]}: the .tsv caption file of {language} has image ids of its own; omit one "
            "of the two"
        )
    if shared and not texts - own.keys():
        raise UserError(f"--ids {shared}: every caption file has image ids already; omit the option")
    return [read_language_captions(language, path, own.get(language, shared)) for language, path in files.items()]


def check_lines(path: Path, lines: Sequence[str]) -> None:
    """Check that the lines of a file are lines of text.

    Raises:
        UserError: the file is a table in another form, or naming the first line with a carriage return or a NUL in it.
    """
    if path.name.lower().removesuffix(".gz").endswith(OTHER_TABLES):
        raise UserError(
            f"{path}: is a table, and all of each line would become the caption; give a .tsv file of "
            "'id, tab, caption' lines; preprocess/own.py reads CSV and JSON"
        )
    for number, line in enumerate(lines, start=1):
        if "\r" in line:
            raise UserError(
                f"{path}, line {number}: has a carriage return inside, as files of old Macs have at the end of each "
                "line; end lines with line feeds"
            )
        if "\0" in line:
            raise UserError(f"{path}, line {number}: has a NUL character, so it is not UTF-8 text; convert it to UTF-8")


def check_table(path: Path, lines: Sequence[str], numbered: bool = False) -> None:
    """Check that the lines of a `.tsv` file are ids and captions as this project writes them.

    Args:
        path: of the file.
        lines: its lines.
        numbered: whether ids may end with the number of their caption, because every caption has its own id.

    Raises:
        UserError: naming the first line with a third column, the quotes of a csv writer, an id with the number of its
            caption, or a header.
    """
    quoted = 0
    for number, line in enumerate(lines, start=1):
        image_id, _, text = line.partition("\t")
        if "\t" in text:
            columns = line.count("\t") + 1
            raise UserError(f"{path}, line {number}: has {columns} columns; keep the id and the caption only")
        quoted += is_quoted(text)
        if is_quoted(image_id) or (is_quoted(text) and '""' in text[1:-1]):
            raise UserError(f"{path}, line {number}: {QUOTED}")
        if not numbered and NUMBERED_ID.search(image_id):
            raise UserError(
                f"{path}, line {number}: the id {image_id!r} ends with the number of its caption; ids may not carry "
                f"#N, so write {image_id.rpartition('#')[0]!r}"
            )
    if quoted == len(lines) > 1:  # nobody writes only quotations
        raise UserError(f"{path}, line 1: {QUOTED}")
    image_id, _, text = lines[0].partition("\t")
    if image_id.strip().lower() in HEADER_IDS and text.strip().lower() in HEADER_TEXTS:
        raise UserError(f"{path}, line 1: looks like a header; remove it")


def check_no_tabs(path: Path, lines: Sequence[str]) -> None:
    """Check that a file of one caption per line is not a table.

    Raises:
        UserError: naming the first line with a tab.
    """
    for number, line in enumerate(lines, start=1):
        if "\t" in line:
            raise UserError(
                f"{path}, line {number}: has a tab, and all of the line would become the caption; name a file of "
                "'id, tab, caption' lines .tsv, or remove the tab"
            )


def is_quoted(field: str) -> bool:
    """Whether a csv writer may have quoted a field: quotes around it, and inside only doubled ones."""
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def is_tsv(path: Path) -> bool:
    """Whether a caption file holds `id<TAB>caption` lines; its extension decides."""
    return path.name.endswith(TSV_SUFFIXES)


def files_by_language(values: Sequence[str], option: str) -> dict[str, Path]:
    """What an option names as LANGUAGE=FILE, in its order.

    Raises:
        UserError: a value is not LANGUAGE=FILE, or a language appears twice.
    """
    files: dict[str, Path] = {}
    for value in values:
        language, equals, path = value.partition("=")
        if not (language and equals and path):
            raise UserError(f"{option} {value}: is not LANGUAGE=FILE; write for example de=valid.de")
        if not language.isprintable():
            raise UserError(f"{option} {value}: names a language that cannot be shown; write for example de=valid.de")
        if language in files:
            raise UserError(f"{option} {value}: {language} already has {files[language]}; give each language once")
        files[language] = Path(path).expanduser()
    return files


def _split_ids(options: Sequence[str], files: dict[str, Path]) -> tuple[dict[str, Path], Path | None]:
    """Ids by language, and the one file for all others."""
    own: dict[str, Path] = {}
    shared: Path | None = None
    for option in options:
        language, equals, path = option.partition("=")
        if equals and language in files:
            if language in own:
                raise UserError(f"--ids {option}: {language} already has {own[language]}; give each language once")
            own[language] = Path(path).expanduser()
        elif equals and not Path(option).expanduser().exists():
            raise UserError(f"--ids {option}: no --captions are in {language!r}; name one of their languages")
        elif shared is not None:
            raise UserError(f"--ids {option}: {shared} is already given; write LANGUAGE=FILE to give several")
        else:
            shared = Path(option).expanduser()
    return own, shared


def _check_no_empty_line(path: Path, lines: Sequence[str]) -> None:
    number = next((number for number, line in enumerate(lines, start=1) if is_blank(line)), None)
    if number is not None:
        raise UserError(f"{path}, line {number}: is empty; evaluation skips nothing, so complete or remove the line")
