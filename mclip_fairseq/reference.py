"""The options of every registered component, read from their dataclasses: `mclip-doctor options`, docs/options.md.

`fairseq-train --task trikd --help` stops at fairseq's own options, because its parser answers `--help` before it knows
which task, model, criterion and optimizer are meant.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mclip_fairseq.storage.errors import UserError

# Kind -> the option that chooses a component of it.
KINDS = {
    "task": "--task",
    "model": "--arch",
    "criterion": "--criterion",
    "optimizer": "--optimizer",
    "lr_scheduler": "--lr-scheduler",
}
TITLE = "# Options\n"
INTRODUCTION = """
<!-- Written by: mclip-doctor options --markdown > docs/options.md -->

The options that this project adds to fairseq's. `mclip-doctor options trikd` prints the same for one component, and
`fairseq-train --help` lists fairseq's own options. `--arch` takes the name of a model or of one of its architectures,
which are sets of defaults.
"""


@dataclass(frozen=True)
class Option:
    """One option of a component.

    Attributes:
        flags: as typed, the newest name first; a positional argument has its name only.
        value: what it takes: a type, `a|b` for choices, or empty for a switch.
        default: as typed; empty if there is none.
        help: what it does.
    """

    flags: tuple[str, ...]
    value: str
    default: str
    help: str


@dataclass(frozen=True)
class Component:
    """A registered component.

    Attributes:
        kind: one of `KINDS`.
        name: under which it is registered.
        summary: first sentence of its docstring.
        options: of its dataclass, in its order.
        architectures: of a model: name -> the defaults that it changes, as typed.
    """

    kind: str
    name: str
    summary: str
    options: tuple[Option, ...]
    architectures: dict[str, dict[str, str]]


def components() -> list[Component]:
    """Every component of this package, by kind and name."""
    importlib.import_module("mclip_fairseq.tasks")  # registers them
    found = []
    for kind in KINDS:
        for name, (entry, config) in sorted(_registered(kind).items()):
            if entry.__module__.startswith("mclip_fairseq."):
                summary = (inspect.getdoc(entry) or "").split("\n\n")[0].replace("\n", " ")
                options = tuple(_options(config)) if config is not None else ()
                found.append(Component(kind, name, summary, options, _architectures(name) if kind == "model" else {}))
    return found


def _registered(kind: str) -> dict[str, tuple[Any, Any]]:
    """Name -> (class, dataclass or None) of fairseq's registry."""
    if kind in ("task", "model"):
        module = importlib.import_module(f"fairseq.{kind}s")
        classes = vars(module)[f"{kind.upper()}_REGISTRY"]
        configs = vars(module)[f"{kind.upper()}_DATACLASS_REGISTRY"]
    else:
        entry = importlib.import_module("fairseq.registry").REGISTRIES[kind]
        classes, configs = entry["registry"], entry["dataclass_registry"]
    return {name: (cls, configs.get(name)) for name, cls in classes.items()}


def _options(config: Any) -> Iterator[Option]:
    """The options of a dataclass, as fairseq's parser understands it."""
    generate = importlib.import_module("fairseq.dataclass.utils").gen_parser_from_dataclass
    parser, instance = argparse.ArgumentParser(add_help=False), config()
    generate(parser, instance)
    for action in parser._actions:
        flags = tuple(action.option_strings) or (action.dest,)
        if action.nargs == 0:
            value, default = "", ""
        elif action.choices:
            value, default = "|".join(map(str, action.choices)), _typed(action.default)
        else:
            value, default = getattr(action.type, "__name__", "str").replace("<lambda>", "list"), _typed(action.default)
        taken = str(instance._get_default(action.dest)) if hasattr(instance, action.dest) else ""
        if taken.startswith("${"):  # the value of another option
            default = "that of --" + taken.strip("${}").rpartition(".")[2].replace("_", "-")
        yield Option(flags, value, default, " ".join((action.help or "").split()))


def _typed(value: Any) -> str:
    """A default as a user would type it."""
    if value is None or value == "???":
        return ""
    return str(getattr(value, "value", value)) or "''"


def _architectures(model: str) -> dict[str, dict[str, str]]:
    """Architectures of a model -> option -> the default they set."""
    models = importlib.import_module("fairseq.models")
    found = {}
    for name in sorted(models.ARCH_MODEL_INV_REGISTRY.get(model, [])):
        chosen = Namespace()
        if name != model:
            models.ARCH_CONFIG_REGISTRY[name](chosen)
            found[name] = {f"--{key.replace('_', '-')}": _typed(value) for key, value in vars(chosen).items()}
    return found


def choose(names: Sequence[str]) -> list[Component]:
    """The components of these names, or all; an architecture's name chooses its model.

    Raises:
        UserError: a name that nothing has.
    """
    every = components()
    known = {name for one in every for name in (one.name, *one.architectures)}
    for name in names:
        if name not in known:
            raise UserError(f"{name}: no component has this name; the names are {', '.join(sorted(known))}")
    return [one for one in every if not names or any(name == one.name or name in one.architectures for name in names)]


def as_text(chosen: Sequence[Component]) -> str:
    """The options as indented lines, for a terminal."""
    lines = []
    for one in chosen:
        lines += [f"{KINDS[one.kind]} {one.name}", *textwrap.wrap(one.summary, 100, initial_indent="  ")]
        for option in one.options:
            value = f" {option.value}" if option.value else ""
            default = f" (default: {option.default})" if option.default else ""
            lines.append(f"  {', '.join(option.flags)}{value}{default}")
            indent = " " * 6
            lines += textwrap.wrap(option.help, 110, initial_indent=indent, subsequent_indent=indent)
        for name, defaults in one.architectures.items():
            values = " ".join(f"{flag} {value}" for flag, value in defaults.items())
            lines += textwrap.wrap(f"{name}: {values}", 110, initial_indent="  ", subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def as_markdown(chosen: Sequence[Component]) -> str:
    """The whole reference as a page, with a heading for each kind and component."""
    parts = [TITLE, INTRODUCTION]
    for kind, flag in KINDS.items():
        title = "Learning rate schedule" if kind == "lr_scheduler" else kind.capitalize()
        parts.append(f"\n## {title}s (`{flag}`)\n")
        for one in (one for one in chosen if one.kind == kind):
            parts.append(f"\n### {title} `{one.name}`\n\n{one.summary}\n")
            if one.options:
                parts.append("\n| option | takes | default | meaning |\n|---|---|---|---|\n")
                parts += [_row(option) for option in one.options]
            else:
                parts.append("\nIt has no options.\n")
            if one.architectures:
                parts.append("\n| architecture | defaults that it changes |\n|---|---|\n")
                for name, defaults in one.architectures.items():
                    values = ", ".join(f"`{flag} {value}`" for flag, value in defaults.items()) or "none"
                    parts.append(f"| `{name}` | {values} |\n")
    return "".join(parts)


def _row(option: Option) -> str:
    """A row of the page's table."""
    flags = ", ".join(f"`{flag}`" for flag in option.flags)
    cells = [flags, option.value or "switch", f"`{option.default}`" if option.default else "", option.help]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |\n"
