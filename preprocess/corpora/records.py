"""Records of a user's own data, whatever their format: columns and their values, with the place for messages."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.files import csv_rows, json_lines, numbered_lines, table_rows
from corpora.parts import CODE, Part
from corpora.tars import TEXTS, read_samples
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.folders import list_folder, walk
from mclip_fairseq.storage.texts import is_blank

# What readers call columns that the data do not name.
IMAGE, CAPTION, LANGUAGE = "image", "caption", "language"
DELIMITERS = ",;\t|"
ROWS_AT_ONCE = 64
# Columns of a file -> those to read.
Select = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a table, an object of JSON lines, a sample of a tar, or an image with a caption file.

    Attributes:
        place: where it is, for messages.
        values: column -> value.
        unused: why there is nothing in it, which is no error; empty otherwise.
    """

    place: str
    values: dict[str, Any]
    unused: str = ""


def read_records(part: Part, names: Sequence[str], select: Select) -> Iterator[Record]:
    """All records of a part, in order.

    Args:
        part: a file or folder.
        names: columns of a table without a header; none for a table with one.
        select: called once for a file that stores columns apart, which are then the only ones to be read.

    Raises:
        UserError: the part cannot be read in its format.
    """
    match part.format:
        case "csv":
            yield from with_names(part.path, csv_rows(part.path, None, delimiter_of(part.path)), names)
        case "tsv":
            yield from with_names(part.path, tsv_rows(part.path), names)
        case "jsonl":
            for place, values in json_lines(part.path):
                yield Record(place, values)
        case "parquet" | "arrow":
            yield from read_columns(part, select)
        case "tar":
            yield from read_tar(part)
        case _:
            yield from read_folder(part.path)


def delimiter_of(path: Path) -> str:
    """What separates the columns of a table: the most frequent candidate in its first line."""
    first = next(numbered_lines(path), ("", ""))[1]
    return max(DELIMITERS, key=first.count)


def tsv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows of a table without quotes, each as long as the first.

    Raises:
        UserError: a row has a different number of columns, or a column is quoted as in CSV.
    """
    width = 0
    for place, row in table_rows(path, 1):
        if row == [""]:
            continue
        width = width or len(row)
        if len(row) != width:
            raise UserError(f"{place}: has {len(row)} columns; {width} are expected")
        for field in row:
            inner = field[1:-1]
            if field[:1] == field[-1:] == '"' and '"' in inner and '"' not in inner.replace('""', ""):
                raise UserError(f"{place}: {field!r} is quoted, which a .tsv is not; give --format csv")
        yield place, row


def with_names(path: Path, rows: Iterator[tuple[str, list[str]]], names: Sequence[str]) -> Iterator[Record]:
    """Rows with the names of their columns: those given, or the first row.

    Raises:
        UserError: there is no row, or the names do not fit.
    """
    for place, row in rows:
        if not names:
            names = [name.strip() for name in row]
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise UserError(f"{place}: two columns have the name {twice[0]!r}; rename one, or give --columns")
            continue
        if len(names) != len(row):
            raise UserError(f"{place}: has {len(row)} columns, but --columns names {len(names)}")
        yield Record(place, dict(zip(names, row, strict=True)))
    if not names:
        raise UserError(f"{path}: is empty; give a table with a header")


def read_columns(part: Part, select: Select) -> Iterator[Record]:
    """Rows of a Parquet file, or of an Arrow stream as Hugging Face's `datasets` saves it.

    Raises:
        UserError: it is damaged, or pyarrow is not installed.
    """
    arrow = import_extra("pyarrow", "prepare")
    try:
        number = 0
        for batch in (
            parquet_batches(part.path, select) if part.format == "parquet" else arrow_batches(part.path, select)
        ):
            for values in batch.to_pylist():
                number += 1
                yield Record(f"{part.path}, row {number}", values)
    except arrow.lib.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{part.path}: is not a readable {part.format} file ({reason}); make it again") from error


def parquet_batches(path: Path, select: Select) -> Iterator[Any]:
    """Batches of a few rows."""
    with import_extra("pyarrow.parquet", "prepare").ParquetFile(path) as file:
        yield from file.iter_batches(ROWS_AT_ONCE, columns=list(select(file.schema_arrow.names)))


def arrow_batches(path: Path, select: Select) -> Iterator[Any]:
    """Batches of a few rows; the file is mapped, not read as a whole."""
    arrow = import_extra("pyarrow", "prepare")
    with arrow.memory_map(str(path)) as source, arrow.ipc.open_stream(source) as stream:
        wanted = list(select(stream.schema.names))
        for batch in stream:
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield batch.select(wanted).slice(start, ROWS_AT_ONCE)


def is_own_text(ending: str) -> bool:
    """Whether a member of a tar is read as text: .txt, .json, or .LANG.txt."""
    language, dot, last = ending.rpartition(".")
    return ending in TEXTS or (bool(dot) and last == "txt" and CODE.fullmatch(language) is not None)


def read_tar(part: Part) -> Iterator[Record]:
    """Samples of a webdataset tar: fields of KEY.json, the texts KEY.txt and KEY.LANG.txt, and the picture.

    A picture is a value `{"bytes": content, "name": SHARD/KEY.EXT}`.

    Raises:
        UserError: the tar cannot be used, a key occurs twice, or a sample's .json is not an object.
    """
    path, seen = part.path, set[str]()
    shard = part.below + path.name.partition(".")[0]
    for sample in read_samples(path, is_own_text):
        place = f"{path}, sample {sample.key}"
        if sample.key in seen:
            raise UserError(f"{place}: occurs twice; make the tar again")
        seen.add(sample.key)
        values: dict[str, Any] = {}
        # The texts after the fields of the .json, which img2dataset gives the caption too.
        for ending in sorted(filter(is_own_text, sample.parts), key=lambda ending: ending != "json"):
            try:
                text = sample.parts[ending].decode()
                fields = json.loads(text) if ending == "json" else {}
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: its .{ending} is not valid ({error}); make the tar again") from error
            if not isinstance(fields, dict):
                raise UserError(f"{place}: its .json is not an object; make the tar again")
            values |= fields
            if ending != "json":
                values["_".join([CAPTION, *ending.split(".")[:-1]])] = text
        picture = sample.image
        values[IMAGE] = None if picture is None else {"bytes": picture[1], "name": f"{shard}/{sample.key}.{picture[0]}"}
        yield Record(place, values)


def read_folder(folder: Path) -> Iterator[Record]:
    """Images of a folder, each with its caption files: NAME.txt or NAME.LANG.txt, one caption per line.

    An image without a caption file has no captions, and a text file that belongs to no image is reported as unused.

    Raises:
        UserError: two images have one name, or a name cannot be an id.
    """
    listing = list_folder(folder)
    listing.check_names(folder, None)
    images: dict[str, str] = {}
    for image, _ in listing.images:
        stem = image.rpartition(".")[0]
        if stem in images:
            raise UserError(f"{folder / image}: has the name of {images[stem]} less the ending; rename one")
        images[stem] = image
    whole, captions = set(images.values()), dict[str, list[tuple[str, Path]]]()
    for path in sorted(Path(name) for name, hidden in walk(folder) if name.lower().endswith(".txt") and not hidden):
        stem = path.relative_to(folder).as_posix()[: -len(".txt")]
        base, _, language = stem.rpartition(".")
        if stem in whole or stem in images:
            captions.setdefault(images.get(stem, stem), []).append(("", path))
        elif CODE.fullmatch(language.lower()) and (base in whole or base in images):
            captions.setdefault(images.get(base, base), []).append((language, path))
        else:
            yield Record(str(path), {}, unused="text file without an image")
    for image in images.values():
        if image not in captions:
            yield Record(f"{folder / image}", {IMAGE: image, CAPTION: ""})
        for language, path in captions.get(image, []):
            texts = [text for _, text in numbered_lines(path) if not is_blank(text)]
            yield Record(str(path), {IMAGE: image, CAPTION: texts or "", LANGUAGE: language or None})
