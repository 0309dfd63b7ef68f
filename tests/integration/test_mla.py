"""MLA from NLT to fine-tuning on a tiny corpus: what is trained, what stays as it was, and a language added later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.features import main as features
from mclip_fairseq.export.mla import save_directory
from mclip_fairseq.models.mla_parts import projected
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.places import MARK, recall, remember
from tests.mla_data import captions, finetune, le, nlt
from tests.runs import difference, state_of

Train = Callable[..., str]
QUIET = ("--disable-validation",)


def weights(file: Path) -> dict[str, Any]:
    """The model's state in a checkpoint."""
    state: dict[str, Any] = load_checkpoint(file)["model"]
    return state


def valid(log: str) -> list[dict[str, Any]]:
    """What each validation logged."""
    lines = [line for line in log.splitlines() if "| valid |" in line and "{" in line]
    return [json.loads(line[line.index("{") :]) for line in lines]


@pytest.fixture(scope="module")
def base(mla_corpus: Path, photos: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """NLT, then LE from it: their last checkpoints and logs."""
    folder = tmp_path_factory.mktemp("mla-runs")
    every = ("--validate-interval", 5)
    first = run_train(*nlt(mla_corpus, photos, folder / "nlt", "--max-epoch", 20, *every))
    start = ("--finetune-from-model", folder / "nlt" / "checkpoint_last.pt")
    longer = ("--max-epoch", 40, "--lr", "0.01", "--valid-retrieval")
    second = run_train(*le(mla_corpus, photos, folder / "le", *longer, *every, *start))
    return {
        "nlt": folder / "nlt" / "checkpoint_last.pt",
        "le": folder / "le" / "checkpoint_last.pt",
        "logs": (valid(first), valid(second)),
    }


def assert_english_is_clip(checkpoint: Path, teacher: Path) -> None:
    """Bit for bit the plain CLIP, with its own tokenizer."""
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", language="en")
    plain = DualEncoderTeacher.from_pretrained(teacher)
    tokens = model.tokenizer(captions("en")[:12])
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(projected(plain.model.get_text_features(input_ids=tokens)), dim=1)
        assert torch.equal(model.encode_text(tokens, normalize=False), expected)


def test_both_stages_learn(base: dict[str, Any]) -> None:
    nlt_log, le_log = base["logs"]
    assert float(nlt_log[-1]["valid_loss"]) < 0.5 * float(nlt_log[0]["valid_loss"])
    assert float(le_log[-1]["valid_mean_recall"]) > 45  # chance is about 34 among 16 images
    assert float(le_log[-1]["valid_scale"]) == 100


def test_checkpoints_hold_acquirers_table_and_linear_map_only(base: dict[str, Any]) -> None:
    for stage in ("nlt", "le"):
        names = {name.split(".")[0] for name in weights(base[stage])}
        assert names == {"acquirers", "embedding", "embedding_linear", "frozen_identity"}


def test_english_stays_clip_bit_for_bit(base: dict[str, Any], photos: Path) -> None:
    for stage in ("nlt", "le"):
        assert_english_is_clip(base[stage], photos / "teacher")


def test_a_language_is_read_in_its_own_way_after_training(base: dict[str, Any]) -> None:
    model = MultilingualCLIP.from_pretrained(base["nlt"], device="cpu")
    english = model.for_language("en").encode_text(captions("en"))
    german = model.for_language("de").encode_text(captions("de"))
    wrong = model.for_language("fr").encode_text(captions("de"))
    own, others = (english * german).sum(1).mean(), (english * wrong).sum(1).mean()
    assert own > 0.9
    assert own > others


@pytest.fixture(scope="module")
def added(
    base: dict[str, Any], mla_corpus: Path, photos: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Dutch added to the finished model, in a complete checkpoint and in one of the new language alone."""
    folder = tmp_path_factory.mktemp("mla-added")
    new = ("--acquirers", "de,fr,nl", "--train-langs", "nl", "--train-parts", "acquirers", "--base", base["le"])
    runs = {"whole": (), "small": ("--drop-frozen",)}
    logs = {
        name: run_train(*nlt(mla_corpus, photos, folder / name, *new, *more, "--max-epoch", 15, langs="nl"))
        for name, more in runs.items()
    }
    return {name: folder / name / "checkpoint_last.pt" for name in runs} | {"logs": logs}


def test_adding_a_language_changes_nothing_else(base: dict[str, Any], added: dict[str, Any], photos: Path) -> None:
    before, after = weights(base["le"]), weights(added["whole"])
    new = {name for name in after if name.startswith("acquirers.nl.")}
    assert after.keys() - new == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert_english_is_clip(added["whole"], photos / "teacher")
    log = valid(added["logs"]["whole"])
    assert float(log[-1]["valid_loss"]) < 0.9 * float(log[0]["valid_loss"])


def test_a_checkpoint_may_hold_the_new_language_alone(base: dict[str, Any], added: dict[str, Any]) -> None:
    small = weights(added["small"])
    assert {name.rsplit(".", 3)[0] for name in small if name != "frozen_identity"} == {"acquirers.nl"}
    whole, alone = (MultilingualCLIP.from_pretrained(added[name], device="cpu") for name in ("whole", "small"))
    for lang in ("en", "de", "fr", "nl"):
        texts = captions(lang)[:8]
        pair = [model.for_language(lang).encode_text(texts) for model in (whole, alone)]
        assert torch.equal(*pair), lang


def test_a_small_checkpoint_needs_the_base_it_was_trained_on(
    base: dict[str, Any], added: dict[str, Any], tmp_path: Path
) -> None:
    state = load_checkpoint(added["small"])
    places = recall(state["cfg"][MARK]) or {}
    state["cfg"][MARK] = remember(places | {"model.base": str(base["nlt"])})  # another table, other acquirers
    torch.save(state, tmp_path / "moved.pt")
    with pytest.raises(UserError, match="the checkpoint was trained on text encoder"):
        MultilingualCLIP.from_pretrained(tmp_path / "moved.pt", device="cpu")


@pytest.mark.parametrize("langs", ["en", "en,de,fr"])
def test_fine_tuning_trains_the_towers_on_pixels(
    base: dict[str, Any], mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path, langs: str
) -> None:
    options = finetune(mla_corpus, photos, tmp_path, "--base", base["le"], "--max-update", 4, *QUIET, langs=langs)
    run_train(*options, "--lr", "0.0005")
    state, before = weights(tmp_path / "checkpoint_last.pt"), weights(base["le"])
    plain = DualEncoderTeacher.from_pretrained(photos / "teacher").model.state_dict()
    moved = {name for name, tensor in plain.items() if not torch.equal(state[f"clip.{name}"], tensor)}
    assert {"visual_projection.weight", "text_projection.weight"} <= moved
    assert "logit_scale" not in moved
    assert any(not torch.equal(state[name], tensor) for name, tensor in before.items() if name.startswith("acq"))
    model = MultilingualCLIP.from_pretrained(tmp_path / "checkpoint_last.pt", device="cpu")
    image = photos / "images" / "img0.png"
    own = model.encode_image([image])
    assert not torch.equal(own, MultilingualCLIP.from_pretrained(base["le"], device="cpu").encode_image([image]))


def test_an_interrupted_run_continues_exactly(mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path) -> None:
    run_train(*nlt(mla_corpus, photos, tmp_path / "whole", "--max-update", 9, *QUIET))
    run_train(*nlt(mla_corpus, photos, tmp_path / "parts", "--max-update", 5, *QUIET))
    run_train(*nlt(mla_corpus, photos, tmp_path / "parts", "--max-update", 9, *QUIET))
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "parts")) == ""


@pytest.mark.parametrize("clock", ["update", "parameter"])
def test_the_released_optimizer_continues_exactly(
    clock: str, mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    """bert_adam with warmup_cosine, whose rate depends on the update alone, also after a stop."""
    schedule = ("--lr-scheduler", "warmup_cosine", "--total-num-update", 8) if clock == "update" else ()
    adam = ("--optimizer", "bert_adam", "--bert-adam-clock", clock, *schedule)

    def options(name: str, stop: int) -> list[str]:
        return nlt(
            mla_corpus,
            photos,
            tmp_path / name,
            *adam,
            "--stop-min-lr",
            -1,
            "--max-update",
            8,
            *QUIET,
            *(("--max-epoch", stop) if stop else ()),
        )

    run_train(*options("whole", 0))
    run_train(*options("parts", 1))
    run_train(*options("parts", 0))
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "parts")) == ""


def test_fine_tuning_continues_exactly(
    base: dict[str, Any], mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    def options(name: str, updates: int) -> list[str]:
        more = ("--base", base["le"], "--max-update", updates, *QUIET)
        return finetune(mla_corpus, photos, tmp_path / name, *more, langs="en,de")

    run_train(*options("whole", 4))
    run_train(*options("parts", 2))
    run_train(*options("parts", 4))
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "parts")) == ""


REFUSED = {
    "no languages": (("--acquirers", ""), "name each language once, and not English"),
    "English acquired": (("--acquirers", "en,de"), "name each language once, and not English"),
    "another part": (("--train-parts", "head"), "--train-parts: head is not one of acquirers, embedding"),
    "another language": (("--train-langs", "ja"), "--train-langs: ja is not among --acquirers de,fr"),
    "nothing to leave out": (("--drop-frozen",), "--drop-frozen needs --base or --embedding"),
    "a language without acquirers": (("--langs", "de,nl"), "nl has no acquirers; name it in --acquirers"),
    "acquirers of no width": (("--acquirer-dim", "0", "--train-langs", "de"), "give at least 1, or 0 without"),
    "two tables": (("--clip-embedding", "--embedding", "bert"), "--clip-embedding and --embedding are both given"),
    "nothing to train": (("--clip-embedding", "--acquirer-dim", "0"), "leaves nothing to train"),
    "longer than CLIP": (("--max-caption-tokens", "78"), "pass --max-caption-tokens 77"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused(
    case: str, mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    more, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        run_train(*nlt(mla_corpus, photos, tmp_path, "--max-update", 1, *more))


def test_captions_of_the_other_tokenizer_are_refused(
    mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    options = le(mla_corpus, photos, tmp_path, "--max-update", 1, langs="en")
    wrong = f"{mla_corpus / 'others'}:{mislabelled(mla_corpus, tmp_path)}"
    with pytest.raises(UserError, match="make their data directory with CLIP's tokenizer"):
        run_train(wrong, *options[1:])


def mislabelled(corpus: Path, folder: Path, own: str = "de", name: str = "en") -> Path:
    """Captions of one tokenizer under the name of a language of the other."""
    shutil.copytree(corpus / ("others" if own == "de" else "english"), folder / "data")
    for file in (folder / "data").glob(f"*.{own}*"):
        file.rename(file.with_name(file.name.replace(f".{own}", f".{name}")))
    return folder / "data"


def test_towers_are_not_trained_on_stored_features(
    mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="give --image-root instead of --image-features"):
        run_train(*le(mla_corpus, photos, tmp_path, "--max-update", 1, "--train-parts", "clip"))


def test_a_distance_instead_of_the_contrast_and_no_acquirers(
    mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    """The released options itm_mse and skip: the table alone learns."""
    distance = ("--image-text-weight", 0, "--image-mse-weight", 1, "--acquirer-dim", 0, "--lr", 0.01)
    log = run_train(*le(mla_corpus, photos, tmp_path, *distance, "--max-epoch", 8))
    first, *_, last = (float(line["valid_image_mse_loss"]) for line in valid(log))
    assert last < 0.8 * first
    assert float(valid(log)[-1]["valid_loss"]) == pytest.approx(last, abs=1e-3)
    names = weights(tmp_path / "checkpoint_last.pt").keys()
    assert {name.split(".")[0] for name in names} == {"embedding", "embedding_linear", "frozen_identity"}
    assert_english_is_clip(tmp_path / "checkpoint_last.pt", photos / "teacher")


def test_acquirers_over_clips_own_vocabulary(mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path) -> None:
    """`--clip-embedding`: German read with CLIP's tokenizer, whose table stays frozen."""
    data = mislabelled(mla_corpus, tmp_path, "en", "de")
    own = ("--acquirers", "de", "--clip-embedding", "--text-tokenizer", photos / "teacher")
    run_train(data, *nlt(mla_corpus, photos, tmp_path / "run", *own, "--max-update", 4, *QUIET, langs="de")[1:])
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert {name.split(".")[0] for name in weights(checkpoint)} == {"acquirers", "frozen_identity"}
    assert_english_is_clip(checkpoint, photos / "teacher")
    model = MultilingualCLIP.from_pretrained(checkpoint, device="cpu")
    texts = captions("en")[:4]
    german = model.for_language("de").encode_text(texts)
    assert not torch.equal(german, model.for_language("en").encode_text(texts))
    save_directory(model.tower, tmp_path / "directory")
    again = MultilingualCLIP.from_pretrained(tmp_path / "directory", device="cpu", language="de")
    assert torch.equal(again.encode_text(texts), german)
    with pytest.raises(UserError, match="make their data directory with CLIP's tokenizer"):
        run_train(*nlt(mla_corpus, photos, tmp_path / "wrong", *own, "--max-update", 1, langs="de"))


def test_states_of_layers_are_learned_beside_the_features(
    mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path
) -> None:
    """The released option kd_layers, here also with several languages."""
    command = ["--model", photos / "teacher", "--captions", mla_corpus / "english.tsv", "--output", tmp_path / "states"]
    command += ["--store-dtype", "float32", "--device", "cpu", "--text-layers", "0,1"]
    assert features([*map(str, command)]) == 0
    assert features([*map(str, command[:-1]), "1,0"]) == 2  # not in ascending order
    stage = ("--text-features", tmp_path / "states", "--lr", 0.01)
    both = ("--distill-layers", "0,1", "--layer-weight", 1)
    log = valid(run_train(*nlt(mla_corpus, photos, tmp_path / "run", *stage, *both, "--max-epoch", 8)))
    for name in ("valid_layers_loss", "valid_mse_loss"):
        assert float(log[-1][name]) < 0.8 * float(log[0][name]), name
    wrong = {
        "--layer-weight above 0 and --distill-layers": both[:2],
        "holds states of the layers 0,1, but --distill-layers is none": (),
        "holds states of the layers 0,1, but --distill-layers is 0;": ("--distill-layers", "0", *both[2:]),
    }
    for message, options in wrong.items():
        with pytest.raises(UserError, match=message):
            run_train(*nlt(mla_corpus, photos, tmp_path / "wrong", *stage, "--max-update", 1, *options))
