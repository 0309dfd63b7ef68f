"""``mclip-search``: build an index of images, change it, ask it in any language, and serve it as a page."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mclip_fairseq.cli.features import count, pick_device, positive
from mclip_fairseq.search import query as ask
from mclip_fairseq.search.build import RECALL, build
from mclip_fairseq.search.change import add, remove
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.search.kinds import KINDS
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import read_lines
from mclip_fairseq.storage.images import MAX_PIXELS, check_max_pixels, load_image

PROGRAM = "mclip-search"
HOST = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*\.?|\[[0-9a-fA-F:.]+\]")
EPILOG = """\
example:
  mclip-search build photos --model mclip-base --output photos.index
  mclip-search query photos.index "ein Hund am Strand" --show found.png
  mclip-search query photos.index --languages en="a dog on the beach" de="ein Hund am Strand" ja=浜辺の犬
  mclip-search serve photos.index
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mclip-search``; returns 0, or after one sentence on stderr 2 (something cannot be used) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "query" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "query":  # argparse leaves texts that stand behind an option
        options.text += rest
    # Decoding processes are forked after the tokenizer was used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        print(COMMANDS[options.command](options, [PROGRAM, *arguments]), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough; what is flushed at the exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if options.command in ("build", "add") else ""
        print(f"\n{PROGRAM}: interrupted{goes_on}", file=sys.stderr)
        return 130
    return 0


def load_model(options: argparse.Namespace) -> Any:
    """The model that the options name, on the device asked for."""
    from mclip_fairseq.inference import MultilingualCLIP

    device = pick_device(argparse.Namespace(device=options.device, dtype="float32"))
    return MultilingualCLIP.from_pretrained(
        options.model, device, text_encoder=options.text_encoder, teacher=options.teacher
    )


def load_model_of(index: SearchIndex, options: argparse.Namespace) -> Any:
    """The model that an index was made with, or the one of the command line, checked to be the same.

    Raises:
        UserError: it is not where it was, or it is another one.
    """
    known = index.model["load"]
    path = options.model or known.get("path")
    if not path or (os.path.isabs(path) and not os.path.exists(path)):
        raise UserError(f"{index.path}: its model is no longer at {path}; say where it is with --model")
    found = {
        "model": path,
        "text_encoder": options.text_encoder or known.get("text_encoder"),
        "teacher": options.teacher or known.get("teacher"),
    }
    model = load_model(argparse.Namespace(**vars(options) | found))
    index.check_model(model)
    return model


def run_build(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Build an index."""
    lines = read_lines(options.recall_queries) if options.recall_queries else []
    queries = [ask.checked_query(line) for line in lines if line.strip()]
    return build(options, lambda: load_model(options), queries, command)


def run_add(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Add images."""

    def load() -> Any:
        return load_model_of(SearchIndex.open(options.index), options)

    return add(options, load, command)


def run_remove(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Remove images."""
    names = [*options.id, *(read_lines(options.ids) if options.ids else [])]
    if not names:
        raise UserError("no image is named; give ids, or a file of them with --ids")
    return remove(options.index, names, command)


def run_query(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Ask an index."""
    kinds = [bool(options.text), options.queries is not None, bool(options.image), bool(options.languages)]
    if sum(kinds) != 1:
        raise UserError("give a text, --queries FILE, --image FILE or --languages LANG=TEXT: one of them")
    if options.target is not None and not options.languages:
        raise UserError("--target is the image whose rank --languages reports: give both")
    if options.show is not None and not options.show.suffix:
        raise UserError(f"--show {options.show}: names no kind of picture; write {options.show}.png")
    # Queries are checked before the model is loaded.
    texts = [ask.checked_query(text) for text in options.text]
    if options.queries is not None:
        texts = _texts_of(options.queries)
    languages = _by_language(options.languages)
    check_max_pixels(options.max_pixels)
    images = [load_image(path, options.max_pixels) for path in options.image]
    index = SearchIndex.open(options.index, options.images_root)
    model = load_model_of(index, options)
    report = None
    if languages:
        report = ask.compare_languages(index, model, languages, options.k, options.target)
        texts = list(languages.values())
    if images:
        labels, found = list(map(str, options.image)), ask.search_images(index, model, images, options.k)
    else:
        labels, found = texts, ask.search_texts(index, model, texts, options.k)
    marks = list(languages) or [""] * len(labels)
    answers = [ask.Answer(*answer) for answer in zip(labels, found, marks, strict=True)]
    if options.show is not None:
        for name in ask.draw(index, answers, options.show, options.font):
            print(f"{PROGRAM}: the picture of {name!r} cannot be read any more; its place is white", file=sys.stderr)
    if options.json:
        content = ask.as_json(index, answers) | ({"comparison": report} if report else {})
        return json.dumps(content, indent=1, ensure_ascii=False)
    return ask.format_languages(report) if report else ask.format_answers(answers)


def run_serve(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Serve an index until it is interrupted."""
    try:
        from mclip_fairseq.search.server import serve
    except ImportError as error:
        raise UserError(f"serving needs {error.name}; install it with pip install 'mclip_fairseq[search]'") from error
    index = SearchIndex.open(options.index, options.images_root)
    serve(index, load_model_of(index, options), options.host, options.port, options.allowed_host)
    return "stopped"


COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[str]], str]] = {
    "build": run_build,
    "add": run_add,
    "remove": run_remove,
    "query": run_query,
    "serve": run_serve,
}


def _texts_of(path: Path) -> list[str]:
    """The queries of a file, one a line; an empty line is refused by its number."""
    texts = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            texts.append(ask.checked_query(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not texts:
        raise UserError(f"{path}: holds no queries")
    return texts


def _by_language(words: Sequence[str]) -> dict[str, str]:
    """`LANG=TEXT` words as a dictionary."""
    found: dict[str, str] = {}
    for word in words:
        language, equals, text = word.partition("=")
        if not (language and equals) or language in found:
            raise UserError(f"--languages {word[:60]}: write LANG=TEXT, each language once")
        found[language] = ask.checked_query(text)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)

    _build_options(command("build", "make an index of images or image features; an interrupted build goes on"))
    _add_options(command("add", "add the images that are not in an index yet"))
    _remove_options(command("remove", "take images out of an index by their ids"))
    _query_options(command("query", "find images by texts of any language, or by an image"))
    _serve_options(command("serve", "search an index from a web page"))
    return parser


def _model_options(parser: argparse.ArgumentParser, needed: bool) -> None:
    add = parser.add_argument
    where = "" if needed else " (default: where it was when the index was built)"
    add("--model", required=needed, metavar="M", help=f"checkpoint, exported directory or name of a model{where}")
    add("--text-encoder", metavar="DIR", help="where the model's text encoder is now, if it has moved")
    add("--teacher", metavar="NAME", help="where the model's teacher is now, if it has moved")
    add("--device", help="for example cpu or cuda:0 (default: a GPU when there is one)")


def _source_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="IMAGES_OR_FEATURES", help="folder or list of images, or a feature directory")
    add("--images-root", type=Path, metavar="DIR", help="the pictures of a feature directory, to show them")
    add("--batch-size", type=positive, default=64, metavar="N", help="images at once (default 64)")
    workers = min(4, os.cpu_count() or 1)
    add("--workers", type=count, default=workers, metavar="N", help=f"processes that decode (default {workers})")
    _pixel_option(parser)
    add("--skip-budget", type=count, metavar="N", help="leave out up to N images that cannot be read")


def _pixel_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse an image of more pixels (default {MAX_PIXELS})",
    )


def _build_options(parser: argparse.ArgumentParser) -> None:
    _source_options(parser)
    _model_options(parser, needed=True)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="INDEX", help="index directory to make or to continue")
    kinds = "; ".join(f"{name}: {text}" for name, text in KINDS.items())
    add("--kind", choices=tuple(KINDS), default="exact", help=kinds)
    add("--lists", type=positive, metavar="N", help="of ivf, sq8 and pq (default: near twice the root of the images)")
    add("--bytes", type=positive, metavar="N", help="per vector, of pq (default: an eighth of the dimensions)")
    add("--recall", type=_share, metavar="R", help=f"search until so many are found (default {RECALL})")
    add("--effort", type=positive, metavar="N", help="instead: lists to search, or breadth of the walk for hnsw")
    add(
        "--recall-queries",
        type=Path,
        metavar="FILE",
        help="measure recall with these texts (default: images)",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="index directory")
    _source_options(parser)
    _model_options(parser, needed=False)
    add = parser.add_argument
    add("--replace", action="store_true", help="encode images again whose id is there already")
    add(
        "--moved",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="where the pictures of the index are now, if they have moved; repeated for an index of several folders",
    )


def _remove_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="index directory")
    add("id", nargs="*", metavar="ID", help="of an image")
    add("--ids", type=Path, metavar="FILE", help="file of ids, one a line")


def _index_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="index directory")
    add(
        "--images-root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="where the pictures are now, if they have moved; repeated for an index of several folders",
    )


def _query_options(parser: argparse.ArgumentParser) -> None:
    _index_options(parser)
    _model_options(parser, needed=False)
    add = parser.add_argument
    add("text", nargs="*", metavar="TEXT", help="what the image shows, in any language")
    add("--queries", type=Path, metavar="FILE", help="texts, one a line, asked in one batch")
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="an image as the query; repeatable")
    _pixel_option(parser)
    add("--languages", nargs="+", default=[], metavar="LANG=TEXT", help="one question in several languages, compared")
    add("--target", metavar="ID", help="image whose rank --languages reports (default: the nearest of the first)")
    add("-k", "--top", dest="k", type=positive, default=10, metavar="K", help="how many images (default 10)")
    add("--json", action="store_true", help="print JSON")
    add("--show", type=Path, metavar="PNG", help="draw the images found")
    add("--font", type=Path, action="append", default=[], metavar="FILE", help="font for --show; repeatable")


def _serve_options(parser: argparse.ArgumentParser) -> None:
    _index_options(parser)
    _model_options(parser, needed=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=count, default=8000, metavar="N", help="port (default 8000; 0 takes a free one)")
    add(
        "--allowed-host",
        type=_host,
        action="append",
        default=[],
        metavar="NAME",
        help="name the page is called by besides --host; repeatable; *.example.org allows all below it, * every name",
    )


def _host(text: str) -> str:
    if not HOST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} is no name of a machine; write it without port, or *.example.org")
    return text


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
