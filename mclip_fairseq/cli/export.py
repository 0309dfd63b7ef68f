"""``mclip-export``: a trained model as one directory that works offline elsewhere, and as ONNX."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown

PROGRAM = "mclip-export"
EPILOG = """\
The directory holds safetensors, configuration, tokenizer, image processor and a model card; no pickle.
MultilingualCLIP.from_pretrained(DIR) and sentence_transformers.SentenceTransformer(DIR) read it.

examples:
  mclip-export checkpoints/mclip.pt --teacher openai/clip-vit-base-patch32 --output mclip-base \\
      --license mit --data "CC3M, English captions" --report results/report.json
  mclip-export checkpoints/mclip.pt --output mclip-base --onnx --int8 \\
      --captions en=valid.en de=valid.de --ids valid.ids --features features/valid
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after one sentence on stderr when something cannot be used."""
    options = _parser().parse_args(argv)
    try:
        export(options)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {shown(str(error))}", file=sys.stderr)
        return 2
    return 0


def export(options: argparse.Namespace) -> None:
    """Write what the options ask for.

    Raises:
        UserError: in one sentence, when an option or a file cannot be used.
    """
    from mclip_fairseq.export.card import model_card, read_report
    from mclip_fairseq.export.directory import save_directory
    from mclip_fairseq.formats.towers import TrainedTower
    from mclip_fairseq.inference import MultilingualCLIP

    if options.int8 and not (options.captions and options.features):
        raise UserError("--int8 needs --captions and --features, on which its loss of recall is measured")
    model = MultilingualCLIP.from_pretrained(
        options.model, device="cpu", text_encoder=options.text_encoder or None, teacher=options.teacher or None
    )
    tower = model.tower
    if not isinstance(tower, TrainedTower):
        raise UserError(f"{options.model}: is a transformers model already; mclip-export takes what was trained here")
    card = model_card(
        tower, options.output.name, options.license, options.data, [read_report(file) for file in options.report]
    )
    save_directory(tower, options.output)
    (options.output / "README.md").write_text(card, encoding="utf-8")
    print(f"Written: {options.output}")
    if options.onnx or options.int8:
        from mclip_fairseq.export.onnx import export_onnx

        export_onnx(tower, options.output / "onnx", options.int8, options.captions, options.ids, options.features)
    if options.push:
        push(options.output, options.push)


def push(folder: Path, repository: str) -> None:
    """Upload the directory to the Hub as a private repository, made when needed."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="mclip-export")
    except HfHubHTTPError as error:
        raise UserError(f"{repository}: the Hub refuses the upload: {str(error).splitlines()[0]}") from error
    print(f"Uploaded: {commit.commit_url}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="training checkpoint, or a directory written before")
    parser.add_argument("--output", type=Path, required=True, help="directory to make; its name is the model's")
    parser.add_argument("--text-encoder", default="", help="where the text encoder's archive is now")
    parser.add_argument("--teacher", default="", help="Hub name or directory of the teacher as it is now")
    parser.add_argument("--license", default="", help="identifier for the card, such as mit")
    parser.add_argument("--data", nargs="+", default=[], help="for the card: what it was trained on, a sentence a set")
    parser.add_argument(
        "--report", type=Path, nargs="+", default=[], help="for the card: report.json of mclip-evaluate"
    )
    parser.add_argument("--onnx", action="store_true", help="write both towers as ONNX, checked against torch")
    parser.add_argument("--int8", action="store_true", help="write an int8 text tower, its loss of recall measured")
    parser.add_argument("--captions", nargs="+", default=[], metavar="LANG=FILE", help="for --int8, as mclip-evaluate")
    parser.add_argument("--ids", nargs="+", default=[], metavar="[LANG=]FILE", help="for --int8, as mclip-evaluate")
    parser.add_argument("--features", type=Path, help="for --int8: feature directory of the images")
    parser.add_argument("--push", default="", metavar="USER/NAME", help="upload to the Hub, as a private repository")
    return parser


if __name__ == "__main__":
    sys.exit(main())
