"""Refuses models of `transformers` and sentence-transformers that name something outside them to be read.

These libraries follow several entries of a model's files to other models, directories and files, or to the Hub. A
directory or a repository of the Hub would so choose what is read or fetched on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_json
from mclip_fairseq.storage.hub import published_folder

ADAPTER, MODULES = "adapter_config.json", "modules.json"
# Also config.5.0.0.json, which transformers prefers where config.json lists it.
CONFIG = re.compile(r"config(\..+)?\.json")
READ = (ADAPTER, "config.json", "config.*.json", MODULES, "tokenizer_config.json", "sentence_*.json", "*.index.json")
# Entries with names of files beside them.
LISTS = {"tokenizer_config.json": "fast_tokenizer_files", "config.json": "configuration_files"}
# What sentence-transformers passes on to the loaders of transformers, and which of it names something to be read.
ARGUMENTS = re.compile(r"\w+_(args|kwargs)")
NAMING = re.compile(r"\w+_(path|file|files|dir|folder|name)|config|tokenizer|backbone|state_dict")
COPY = "give a directory without that entry, or the original model"


def check_self_contained(source: str | Path, revision: str | None = None, fetch: bool = True) -> None:
    """Check that the files of a model lead nowhere else; with those of the modules of sentence-transformers.

    Args:
        source: directory or Hub name; of the latter, the files in question are downloaded. Anything else is not looked
            at.
        revision: branch, tag or commit of a Hub name.
        fetch: whether the files of a Hub name may be downloaded.

    Raises:
        UserError: naming the file and the entry.
    """
    folder = published_folder(source, [f"*{name}" for name in READ], revision, fetch)
    if folder is None:
        return
    files = folder.rglob("*.json") if (folder / MODULES).is_file() else folder.glob("*.json")
    for file in sorted(file for file in files if any(fnmatch(file.name, name) for name in READ)):
        place = f"{source}/{file.relative_to(folder)}"
        if file.name == ADAPTER:
            raise UserError(
                f"{place}: is of an adapter, which is read together with the base model that it names; merge the two "
                "(merge_and_unload of peft) and give the result"
            )
        try:
            content = read_json(file)
        except UserError:  # the loader that needs the file says so
            continue
        for entry, value in names_elsewhere(file.name, content):
            raise UserError(f"{place}: {entry} names {value!r}, which would be read from elsewhere; {COPY}")


def check_configuration(place: str | Path, config: Any) -> None:
    """Check that a configuration of `transformers` names no other model.

    Args:
        place: where it comes from, for the message.
        config: the value of its JSON.

    Raises:
        UserError: naming the entry.
    """
    for entry, value in names_elsewhere("config.json", config):
        raise UserError(f"{place}: {entry} names {value!r}, which would be read from elsewhere; {COPY}")


def names_elsewhere(name: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Entries of a file that name something outside its directory, with their values.

    Args:
        name: of the file.
        content: the value of its JSON.
    """
    if name == MODULES:
        paths = [module.get("path") for module in items(content) if isinstance(module, dict)]
        yield from (("path", path) for path in paths if leads_out(path))
    elif not isinstance(content, dict):
        return
    elif name.endswith(".index.json"):
        shards = content.get("weight_map")
        files = shards.values() if isinstance(shards, dict) else ()
        yield from (("weight_map", file) for file in files if leads_out(file))
    elif name.startswith("sentence_"):
        yield from arguments_elsewhere(content)
    else:
        yield from ((LISTS[name], file) for file in items(content.get(LISTS.get(name, ""))) if leads_out(file))
        if CONFIG.fullmatch(name):
            yield from models_elsewhere(content)


def models_elsewhere(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries of a configuration that name a model or a kernel on the Hub, with their values."""
    for key, value in entries(config):
        kernel = "attn_implementation" in key and "/" in str(value)
        if isinstance(value, str) and (key == "backbone" or kernel):
            yield key, value


def arguments_elsewhere(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments in a module's settings that name a file or a model, with their values."""
    for key, value in content.items():
        if key.endswith("_name_or_path") and value is not None:
            yield key, value
        if ARGUMENTS.fullmatch(key) and isinstance(value, dict):
            for argument, given in entries(value):
                if isinstance(given, str) and (NAMING.fullmatch(argument) or re.search(r"[/\\]", given)):
                    yield f"{key}.{argument}", given


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All entries of an object and of the objects in it."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key), each
            yield from entries(each)
    elif isinstance(value, list):
        for each in value:
            yield from entries(each)


def items(value: Any) -> list[Any]:
    """A list as it is; anything else has no items."""
    return value if isinstance(value, list) else []


def leads_out(path: Any) -> bool:
    """Whether a path in a directory's file is absolute or leads above the directory."""
    return isinstance(path, str) and (PurePosixPath(path).is_absolute() or ".." in re.split(r"[/\\]", path))
