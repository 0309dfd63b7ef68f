"""Caption files of an evaluation: which caption, in which language, belongs to which image id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines

TSV_SUFFIXES = (".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Captions:
    """All captions of one language, in file order; none is ever left out.

    Attributes:
        language: the name given by the user, for example "de".
        path: the caption file.
        ids_path: the file that names the images: an ids file, or ``path`` itself for a ``.tsv`` file.
        texts: one caption per line.
        ids: the image id of each caption.
    """

    language: str
    path: Path
    ids_path: Path
    texts: list[str]
    ids: list[str]

    def place(self, row: int) -> str:
        """Where the image id of a caption is written, for messages."""
        return f"{self.ids_path} line {row + 1}"

    def describe(self) -> dict[str, object]:
        """Files, their SHA-256 and the counts, for a report."""
        facts: dict[str, object] = {"path": str(self.path), "sha256": file_sha256(self.path)}
        if self.ids_path != self.path:
            facts |= {"ids_path": str(self.ids_path), "ids_sha256": file_sha256(self.ids_path)}
        return facts | {"captions": len(self.texts), "images": len(set(self.ids))}


def read_captions(language: str, path: Path, ids_path: Path | None = None) -> Captions:
    """Read the captions of one language.

    Args:
        language: its name.
        path: UTF-8 text, plain or ``.gz``. A ``.tsv`` file holds ``id<TAB>caption`` lines, any other file
            one caption per line.
        ids_path: the image id of each caption line (what follows a tab is left out, as the ids files of
            ``trikd`` have it); needed unless ``path`` is a ``.tsv`` file, which has its own.

    Raises:
        UserError: naming file and line, when a file cannot be read, lines are empty or the counts differ.
    """
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path} is empty: it must hold at least one line.")
    if is_tsv(path):
        fields = [line.partition("\t") for line in lines]
        for number, (image_id, tab, text) in enumerate(fields, start=1):
            if not (image_id.strip() and tab and text.strip()):
                raise UserError(f"{path} line {number} is not 'image id, tab, caption': complete that line.")
        return Captions(language, path, path, [text for *_, text in fields], [i.strip() for i, *_ in fields])
    if ids_path is None:
        raise UserError(
            f"The captions of {language} ({path}) have no image ids: give --ids with one id per line, or a "
            ".tsv file with 'image id, tab, caption' lines."
        )
    _refuse_empty(path, lines)
    ids = [line.split("\t")[0].strip() for line in read_lines(ids_path)]
    _refuse_empty(ids_path, ids)
    if len(ids) != len(lines):
        raise UserError(
            f"{path} has {len(lines)} captions but {ids_path} has {len(ids)} image ids: line n of one must "
            "belong to line n of the other."
        )
    return Captions(language, path, ids_path, lines, ids)


def read_caption_files(captions: Sequence[str], ids: Sequence[str]) -> list[Captions]:
    """Read what the options ``--captions LANG=FILE ...`` and ``--ids [LANG=]FILE ...`` name.

    Raises:
        UserError: when an option is malformed, contradictory or names a file that cannot be used.
    """
    files = files_by_language(captions, "--captions")
    own, shared = _split_ids(ids, files)
    texts = {language for language, path in files.items() if not is_tsv(path)}
    if needless := sorted(own.keys() - texts):
        raise UserError(
            f"--ids {needless[0]}={own[needless[0]]}: the .tsv caption file of {needless[0]} has image ids "
            "of its own; leave one of the two out."
        )
    if shared and not texts - own.keys():
        raise UserError(f"--ids {shared}: every caption file has image ids already; leave the option out.")
    return [read_captions(language, path, own.get(language, shared)) for language, path in files.items()]


def is_tsv(path: Path) -> bool:
    """Whether a caption file holds ``id<TAB>caption`` lines, told by its extension alone."""
    return path.name.endswith(TSV_SUFFIXES)


def files_by_language(values: Sequence[str], option: str) -> dict[str, Path]:
    """What an option names as LANGUAGE=FILE, in its order.

    Raises:
        UserError: another form, or a language twice.
    """
    files: dict[str, Path] = {}
    for value in values:
        language, equals, path = value.partition("=")
        if not (language and equals and path):
            raise UserError(f"{option} {value}: write it as LANGUAGE=FILE, for example de=valid.de.")
        if language in files:
            raise UserError(f"{option} {value}: {language} already has {files[language]}; give each language once.")
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
                raise UserError(f"--ids {option}: {language} already has {own[language]}; give each language once.")
            own[language] = Path(path).expanduser()
        elif equals and not Path(option).expanduser().exists():
            raise UserError(f"--ids {option}: there are no --captions in {language!r}.")
        elif shared is not None:
            raise UserError(f"--ids {option}: {shared} is already given; write LANGUAGE=FILE to give several.")
        else:
            shared = Path(option).expanduser()
    return own, shared


def _refuse_empty(path: Path, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{path} line {number} is empty: evaluation skips nothing, so fill or remove that line.")
