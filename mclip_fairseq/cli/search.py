"""`mclip-search`: build an index of images, change it, query it in any language, and serve it as a web page."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_fairseq.cli.main import run_main
from mclip_fairseq.cli.options import pick_device
from mclip_fairseq.cli.search_engines import is_database, open_index, open_store
from mclip_fairseq.cli.search_options import PROGRAM, build_parser
from mclip_fairseq.search.settings import ImageSettings, IndexSettings, ModelPaths
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra
from mclip_fairseq.storage.files import read_lines
from mclip_fairseq.storage.images import check_max_pixels, load_image

if TYPE_CHECKING:
    from mclip_fairseq.search.answering import Question
    from mclip_fairseq.search.engine import Index
    from mclip_fairseq.search.query import Answer


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mclip-search`; returns its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments, after_dashes = split_at_dashes(parser, given)
    options, more = parser.parse_known_args(arguments)
    if more and (options.command != "query" or any(word.startswith("-") for word in more)):
        hint = "; write -- before a text that begins with -" if options.command == "query" else ""
        parser.error(f"unrecognized arguments: {' '.join(more)}{hint}")
    if options.command == "query":  # argparse does not take texts after an option
        options.text += [*more, *after_dashes]
    # A tokenizer with threads must not be used before decoding processes are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    resumes = options.command in ("build", "add", "sync")
    return run_main(
        PROGRAM,
        lambda: print_all(COMMANDS[options.command](options, [PROGRAM, *given])),
        when_interrupted="run the same command again to continue" if resumes else "",
    )


def split_at_dashes(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of a query before a -- and the texts behind it, which argparse does not take after an option."""
    if arguments[:1] != ["query"] or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parser.parse_known_args(arguments[:place])
    except SystemExit:  # INDEX is behind the dashes too, which argparse reads correctly
        return arguments, []
    return arguments[:place], arguments[place + 1 :]


def print_all(text: str) -> None:
    """Print a text; a reader that closes the pipe early, such as `head`, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again at its exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load_model(paths: ModelPaths, options: argparse.Namespace) -> Any:
    """A model on the device that `--device` names, which has to compute in what `--dtype` names."""
    from mclip_fairseq.inference import MultilingualCLIP

    device = pick_device(options.device, getattr(options, "dtype", "float32"))
    return MultilingualCLIP.from_pretrained(paths.path, device, text_encoder=paths.text_encoder, teacher=paths.teacher)


def load_model_of(index: Index, options: argparse.Namespace) -> Any:
    """The model that an index was made with, from where it was or where the command line says it is now.

    Raises:
        UserError: it has moved, or is a different model.
    """
    known = index.places.model if index.places else ModelPaths("")
    path = options.model or known.path
    if not path:
        raise UserError(
            f"{index.path}: was built on another machine or by an earlier version, so nothing here says where its "
            f"model {index.model.get('name')!r} is; name it with --model"
        )
    if not options.model and os.path.isabs(path) and not os.path.exists(path):
        raise UserError(f"{index.path}: its model is no longer at {path}; pass --model with its new place")
    # What goes with another model is not taken over.
    beside = known if not options.model or options.model == known.path else ModelPaths("")
    paths = ModelPaths(path, options.text_encoder or beside.text_encoder, options.teacher or beside.teacher)
    model = load_model(paths, options)
    index.check_model(model)
    return model


def image_settings(options: argparse.Namespace) -> ImageSettings:
    """The settings of `build` and `add` that say what is indexed."""
    return ImageSettings(
        options.source,
        options.images_root,
        options.batch_size,
        options.workers,
        options.max_pixels,
        options.skip_budget,
        options.hidden,
        options.hash_images,
        options.dtype,
    )


def run_build(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Build an index."""
    from mclip_fairseq.search.query import check_query

    database = is_database(options)
    lines = read_lines(options.recall_queries) if options.recall_queries else []
    queries = [check_query(line) for line in lines if line.strip()]
    settings = IndexSettings(options.kind, options.lists, options.bytes, options.recall, options.effort)
    paths = ModelPaths(options.model, options.text_encoder, options.teacher)

    def load() -> Any:
        return load_model(paths, options)

    if database:
        from mclip_fairseq.search.database import build_collection

        store = open_store(options, options.output, create=True)
        return build_collection(store, image_settings(options), settings, load, paths, queries, command)
    from mclip_fairseq.search.build import build_index

    return build_index(options.output, image_settings(options), settings, load, paths, queries, command)


def run_add(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Add images."""
    if is_database(options):
        from mclip_fairseq.search.database import add_to_collection

        store = open_store(options, options.index)
        images = image_settings(options)
        return add_to_collection(
            store, images, lambda index: load_model_of(index, options), options.replace, options.moved
        )
    from mclip_fairseq.search.change import add_images
    from mclip_fairseq.search.index import SearchIndex

    return add_images(
        options.index,
        image_settings(options),
        lambda: load_model_of(SearchIndex.open(options.index), options),
        command,
        options.replace,
        options.moved,
    )


def run_sync(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Bring an index up to date with a folder: add, encode again, and remove."""
    from mclip_fairseq.search.change import add_images
    from mclip_fairseq.search.index import SearchIndex

    return add_images(
        options.index,
        image_settings(options),
        lambda: load_model_of(SearchIndex.open(options.index), options),
        command,
        moved=options.moved,
        drop=True,
    )


def run_remove(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Remove images."""
    names = [*options.id, *(read_lines(options.ids) if options.ids else [])]
    if not names:
        raise UserError("no ids given; name the images to remove, or a file of ids with --ids")
    if is_database(options):
        from mclip_fairseq.search.database import remove_from_collection

        return remove_from_collection(open_store(options, options.index), names)
    from mclip_fairseq.search.change import remove_images

    return remove_images(options.index, names, command)


def run_query(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Query an index."""
    from mclip_fairseq.search.answering import answer
    from mclip_fairseq.search.calibration import read_calibration

    check_query_options(options)
    question = question_from_options(options)  # before the model is loaded
    index = open_index(options)
    model = load_model_of(index, options)
    judge = read_calibration(index, options.fit, options.hubs)
    answers = answer(index, model, question, options.k, options.unique, options.rerank, judge)
    for warning in filter(None, (each.warning for each in answers)):
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
    comparison = compare(index, model, question, options) if options.languages else None
    if options.show is not None:
        show(index, answers, options)
    from mclip_fairseq.search.query import answers_as_json, format_answers, format_languages

    if options.json:
        content = answers_as_json(index, answers) | ({"comparison": comparison} if comparison else {})
        return json.dumps(content, indent=1, ensure_ascii=False)
    return format_languages(comparison) if comparison else format_answers(index, answers)


def check_query_options(options: argparse.Namespace) -> None:
    """Refuse options of `query` that contradict each other."""
    ways = [bool(options.text), options.queries is not None, bool(options.image), bool(options.languages)]
    if sum(ways) != 1:
        raise UserError("give a text, --queries FILE, --image FILE or --languages LANG=TEXT, and only one of them")
    if options.target is not None and not options.languages:
        raise UserError("--target is for --languages, which reports the rank of that image; give both")
    if options.rerank and not (options.text or options.queries):
        raise UserError("--rerank puts the answers of texts in order; give a text or --queries FILE")
    if options.image and (options.hubs or options.fit is not None):
        raise UserError("--fit and --hubs judge the answers of texts; leave them out with --image")
    check_judging(options)
    if options.show is not None and not options.show.suffix:
        raise UserError(f"--show {options.show}: has no image extension; write {options.show}.png")
    check_max_pixels(options.max_pixels)


def check_judging(options: argparse.Namespace) -> None:
    """Refuse two options that put hits in order."""
    if options.rerank and options.hubs:
        raise UserError("--rerank and --hubs both put hits in order; give one of them")


def question_from_options(options: argparse.Namespace) -> Question:
    """The texts or images of `query`, checked."""
    from mclip_fairseq.search.answering import Question
    from mclip_fairseq.search.query import check_query

    if options.languages:
        by_language = texts_by_language(options.languages)
        return Question(list(by_language.values()), list(by_language), [])
    if options.image:
        return Question(
            list(map(str, options.image)), [], [load_image(path, options.max_pixels) for path in options.image]
        )
    texts = [check_query(text) for text in options.text] if options.queries is None else read_texts(options.queries)
    return Question(texts, [options.language] * len(texts) if options.language else [], [])


def compare(index: Index, model: Any, question: Question, options: argparse.Namespace) -> dict[str, Any]:
    """The comparison of `--languages`."""
    from mclip_fairseq.search.query import compare_languages

    queries = dict(zip(question.languages, question.texts, strict=True))
    return compare_languages(index, model, queries, options.k, options.target)


def show(index: Index, answers: Sequence[Answer], options: argparse.Namespace) -> None:
    """Draw the answers, and warn of images that cannot be read."""
    from mclip_fairseq.search.query import draw_answers

    for name in draw_answers(index, answers, options.show, options.font):
        print(f"{PROGRAM}: the image {name!r} can no longer be read; its place is left white", file=sys.stderr)


def run_serve(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Serve an index until it is interrupted."""
    check_judging(options)
    for package in ("starlette", "uvicorn"):
        import_extra(package, "search")
    from mclip_fairseq.search.embeddings import KEY_VARIABLE, access_of
    from mclip_fairseq.search.presenting import read_extras
    from mclip_fairseq.search.server import serve

    access = access_of(options.host, options.allowed_host, os.environ.get(KEY_VARIABLE, ""))
    if not access.offered:
        reason = f"others can reach this server; set {KEY_VARIABLE} to a key to offer it"
        print(f"{PROGRAM}: /v1/embeddings is off, because {reason}", file=sys.stderr)
    extras = read_extras(options.examples, options.captions, options.fit, options.hubs)
    index = open_index(options)
    model = load_model_of(index, options)
    serve(index, model, options.host, options.port, options.allowed_host, options.rerank, extras, access)
    return "stopped"


def run_calibrate(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Give an index a bank of queries, and measure how often it is wrong."""
    from mclip_fairseq.search.bank import read_labelled
    from mclip_fairseq.search.calibration import calibrate
    from mclip_fairseq.search.words import words_in

    if options.fit is not None and options.test is None:
        raise UserError("--fit is for what --test measures; give both, and --fit again to query and serve")
    index = open_index(options)
    bank = words_in(options.words) if options.words else read_labelled(options.bank, index)
    test = [] if options.test is None else read_labelled(options.test, index)
    return calibrate(index, lambda: load_model_of(index, options), bank, test, options.fit)


def run_size(options: argparse.Namespace, command: Sequence[str]) -> str:
    """Print what indexes would take."""
    from mclip_fairseq.search.sizes import table

    return table(options.vectors, options.dim, options.memory)


COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[str]], str]] = {
    "build": run_build,
    "add": run_add,
    "sync": run_sync,
    "remove": run_remove,
    "query": run_query,
    "serve": run_serve,
    "calibrate": run_calibrate,
    "size": run_size,
}


def read_texts(path: Path) -> list[str]:
    """The queries of a file, one per line.

    Raises:
        UserError: no queries, or a line that cannot be a query, by its number.
    """
    from mclip_fairseq.encoding.captions import check_lines
    from mclip_fairseq.search.query import check_query

    texts, lines = [], read_lines(path)
    check_lines(path, lines)
    for number, line in enumerate(lines, 1):
        if "\t" in line:
            raise UserError(f"{path}, line {number}: has a tab; write one query per line, and nothing else")
        try:
            texts.append(check_query(line))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not texts:
        raise UserError(f"{path}: holds no queries; write one per line")
    return texts


def texts_by_language(words: Sequence[str]) -> dict[str, str]:
    """The `LANG=TEXT` words of `--languages` as a dictionary."""
    from mclip_fairseq.search.query import check_query

    texts: dict[str, str] = {}
    for word in words:
        language, equals, text = word.partition("=")
        if not (language and equals) or language in texts:
            raise UserError(f"--languages {word[:60]}: write LANG=TEXT, each language once")
        texts[language] = check_query(text)
    return texts


if __name__ == "__main__":
    sys.exit(main())
