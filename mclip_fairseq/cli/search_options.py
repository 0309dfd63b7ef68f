"""The options of `mclip-search` and its commands."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mclip_fairseq.cli.main import Parser
from mclip_fairseq.cli.options import add_dtype, add_workers, count, positive, share
from mclip_fairseq.search.settings import DATABASE_KINDS, DEFAULT_RECALL, ENGINES, KINDS
from mclip_fairseq.storage.images import MAX_PIXELS

PROGRAM = "mclip-search"
HOST = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*\.?|\[[0-9a-fA-F:.]+\]")
DESCRIPTION = "Build an index of images, change it, query it in any language, and serve it as a web page."
EPILOG = """\
example:
  mclip-search build photos --model mclip-base --output photos.index
  mclip-search query photos.index "ein Hund am Strand" --show found.png
  mclip-search query photos.index --languages en="a dog on the beach" de="ein Hund am Strand" ja=浜辺の犬
  mclip-search serve photos.index
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)

    _build_options(command("build", "build an index of images or image features, or continue an interrupted build"))
    _add_options(command("add", "add new images to an index, and encode images again that have changed"))
    _sync_options(command("sync", "like add, and also remove the images whose files are gone from the folder"))
    _remove_options(command("remove", "remove images from an index by their ids"))
    _query_options(command("query", "find images by texts in any language, or by an image"))
    _serve_options(command("serve", "search an index on a web page"))
    _calibrate_options(command("calibrate", "give an index a bank of queries, which says how well hits fit"))
    _size_options(command("size", "say how much memory and disk an index would take, and how many machines"))
    return parser


def _size_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    vectors = "numbers of images (default 1000000 1000000000)"
    add("--vectors", type=positive, nargs="+", default=[10**6, 10**9], metavar="N", help=vectors)
    add("--dim", type=positive, nargs="+", default=[512], metavar="D", help="dimensions of the vectors (default 512)")
    memory = "memory of a machine in GiB, of which seven tenths hold vectors (default 256)"
    add("--memory", type=positive, default=256, metavar="GIB", help=memory)


def _engine_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    engines = "what holds the vectors: faiss, in a directory (default), or a database, in the collection INDEX"
    add("--engine", choices=ENGINES, default="faiss", help=engines)
    address = "address of the database, or a path that ends in .db (milvus) or .qdrant, which needs no server"
    variables = "MILVUS_URI or QDRANT_URI; MILVUS_TOKEN or QDRANT_TOKEN holds the credentials"
    add("--uri", metavar="URI", help=f"{address} (default: the environment's {variables})")


def _model_options(parser: argparse.ArgumentParser, required: bool) -> None:
    add = parser.add_argument
    default = "" if required else " (default: where it was when the index was built)"
    add("--model", required=required, metavar="M", help=f"checkpoint, exported directory or model name{default}")
    add("--text-encoder", metavar="DIR", help="where the model's text encoder is now, if it has moved")
    add("--teacher", metavar="NAME", help="where the model's teacher is now, if it has moved")
    add("--device", help="for example cpu or cuda:0 (default: a GPU if there is one)")


def _source_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="IMAGES_OR_FEATURES", help="folder or list of images, or a feature directory")
    add("--images-root", type=Path, metavar="DIR", help="folder or list of a feature directory's images, to show them")
    add("--batch-size", type=positive, default=64, metavar="N", help="images per batch (default 64)")
    add_workers(parser)
    _pixel_option(parser)
    add("--skip-budget", type=count, metavar="N", help="skip up to N unreadable images")
    hidden = "also take hidden images, and those of recycle bins and thumbnail folders"
    add("--hidden", action="store_true", help=hidden)
    hashed = "compare images by the hashes of their files, which reads them all (default: by size and time of change)"
    add("--hash-images", action="store_true", help=hashed)
    add_dtype(parser, "encode images")


def _pixel_option(parser: argparse.ArgumentParser) -> None:
    help_text = f"refuse larger images (default {MAX_PIXELS})"
    parser.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=help_text)


def _build_options(parser: argparse.ArgumentParser) -> None:
    _source_options(parser)
    _model_options(parser, required=True)
    _engine_options(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="INDEX", help="index directory or collection to make or continue")
    kinds = "; ".join(f"{name}: {text}" for name, text in (KINDS | DATABASE_KINDS).items())
    add("--kind", choices=(*KINDS, *DATABASE_KINDS), default="exact", help=kinds)
    lists = "number of IVF lists for ivf, sq8, pq (default: about 2*sqrt(number of images))"
    add("--lists", type=positive, metavar="N", help=lists)
    add("--bytes", type=positive, metavar="N", help="bytes per vector for pq (default: dim / 8)")
    add("--recall", type=share, metavar="R", help=f"target recall@10 of the index (default {DEFAULT_RECALL})")
    effort = "instead of --recall: number of lists to search, or breadth of the walk for hnsw"
    add("--effort", type=positive, metavar="N", help=effort)
    queries = "measure recall with these texts, one per line (default: with images of the index)"
    add("--recall-queries", type=Path, metavar="FILE", help=queries)


def _add_options(parser: argparse.ArgumentParser) -> None:
    _index_argument(parser)
    _source_options(parser)
    _model_options(parser, required=False)
    _engine_options(parser)
    add = parser.add_argument
    again = "encode images again whose id is already in the index, changed or not"
    add("--replace", action="store_true", help=again)
    _moved_option(parser, "--moved")


def _sync_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="index directory")
    _source_options(parser)
    _model_options(parser, required=False)
    _moved_option(parser, "--moved")


def _remove_options(parser: argparse.ArgumentParser) -> None:
    _index_argument(parser)
    add = parser.add_argument
    add("id", nargs="*", metavar="ID", help="image id")
    add("--ids", type=Path, metavar="FILE", help="file of ids, one per line")
    _engine_options(parser)


def _index_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="index directory, or a collection of --engine")


def _index_options(parser: argparse.ArgumentParser) -> None:
    _index_argument(parser)
    _moved_option(parser, "--images-root")
    _engine_options(parser)


def _moved_option(parser: argparse.ArgumentParser, name: str) -> None:
    help_text = "where the index's images are now, if they have moved; repeat for an index of several folders"
    parser.add_argument(name, type=Path, action="append", default=[], metavar="DIR", help=help_text)


def _query_options(parser: argparse.ArgumentParser) -> None:
    _index_options(parser)
    _model_options(parser, required=False)
    add = parser.add_argument
    add("text", nargs="*", metavar="TEXT", help="what the image shows, in any language")
    add("--queries", type=Path, metavar="FILE", help="texts, one per line, searched as one batch")
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="search with an image; repeatable")
    _pixel_option(parser)
    add("--language", default="", help="language of the texts, for a model that reads each in its own way (by script)")
    add("--languages", nargs="+", default=[], metavar="LANG=TEXT", help="compare one question in several languages")
    target = "image whose rank --languages reports (default: the first language's nearest)"
    add("--target", metavar="ID", help=target)
    add("-k", "--top", dest="k", type=positive, default=10, metavar="K", help="number of images (default 10)")
    where = (
        "search only images that fit a filter of the database, such as 'folder like \"2024/%%\"'; see "
        "docs/search_database.md"
    )
    add("--where", default="", metavar="FILTER", help=where)
    _rerank_option(parser)
    _judging_options(parser)
    add("--unique", action="store_true", help="show images with equal vectors, such as copies, once, with their number")
    add("--json", action="store_true", help="print JSON")
    add("--show", type=Path, metavar="PNG", help="draw the images to a file")
    add("--font", type=Path, action="append", default=[], metavar="FILE", help="font for --show; repeatable")


def _calibrate_options(parser: argparse.ArgumentParser) -> None:
    _index_argument(parser)
    add = parser.add_argument
    form = "lines of `language, tab, query`, and a tab and an image id where the query describes an image of the index"
    bank = parser.add_mutually_exclusive_group(required=True)
    bank.add_argument("--bank", type=Path, metavar="FILE", help=f"queries: {form}")
    words = "instead of --bank: names of countries in these languages, such as en de ja; hardly any image shows one"
    bank.add_argument("--words", nargs="+", default=[], metavar="LANG", help=words)
    add("--test", type=Path, metavar="FILE", help="other queries in the same form, to measure how often it is wrong")
    add("--fit", type=share, metavar="F", help="with --test: least fit of a hit that fits well (default 0.5)")
    _model_options(parser, required=False)
    _engine_options(parser)


def _judging_options(parser: argparse.ArgumentParser) -> None:
    help_text = "least fit, from 0 to 1, of a hit that fits well (default 0.5); needs mclip-search calibrate"
    parser.add_argument("--fit", type=share, metavar="F", help=help_text)
    hubs = "correct hubs, images that are near to many queries, with QB-Norm; needs mclip-search calibrate"
    parser.add_argument("--hubs", action="store_true", help=hubs)


def _rerank_option(parser: argparse.ArgumentParser) -> None:
    help_text = "put the nearest K images of a text in the order of the model's matching scores (ccrk only)"
    parser.add_argument("--rerank", type=positive, default=0, metavar="K", help=help_text)


def _serve_options(parser: argparse.ArgumentParser) -> None:
    _index_options(parser)
    _model_options(parser, required=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=count, default=8000, metavar="N", help="port (default 8000; 0 picks a free one)")
    hosts = "accept this host name besides --host; repeatable; *.example.org accepts all below it, * every name"
    _rerank_option(parser)
    _judging_options(parser)
    add("--allowed-host", type=_host, action="append", default=[], metavar="NAME", help=hosts)
    add("--examples", type=Path, metavar="FILE", help="queries for the start screen: lines of `language, tab, query`")
    add("--captions", type=Path, metavar="FILE", help="captions under the images: lines of `image id, tab, caption`")


def _host(text: str) -> str:
    if not HOST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} is not a host name; write it without a port, or as *.example.org")
    return text
