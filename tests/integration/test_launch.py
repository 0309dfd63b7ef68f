"""What cannot work is refused in one sentence before anything is read: files, precisions, metrics, directories."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fairseq import options as fairseq_options
from hydra.errors import HydraException

from mclip_fairseq.resilience import holding, launch
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.owners import host_name
from tests.processes import start, wait_for
from tests.runs import ROOT, caption_options, state_of, train_on_ranks
from tests.tiny_data import mte_options

Train = Callable[..., str]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--restore-file", "{}/chekpoint_last.pt"),
            r"--restore-file .*/chekpoint_last\.pt: not found; give an existing",
        ),
        (("--restore-file", "checkpoint_best.pt"), r"--restore-file checkpoint_best\.pt: not found; give .*/run/check"),
        (("--restore-file", "{}"), r"--restore-file .*: is a directory; "),
        (("--restore-file", ""), r"--restore-file \.: is a directory; "),
        (("--restore-file", "{}/run/checkpoint_best.pt", "--checkpoint-suffix", "_a"), r"checkpoint_best_a\.pt: not f"),
        (("--finetune-from-model", "{}/no.pt", "--save-dir", "{}/new"), r"--finetune-from-model .*/no\.pt: not found"),
        (("--continue-once", "{}/no.pt", "--save-dir", "{}/new"), r"--continue-once .*/no\.pt: not found"),
        (("--bf16",), r"^--bf16: is fairseq's TPU mode, which does not work here; .* pass --autocast bfloat16"),
        (("--memory-efficient-bf16",), r"^--bf16: is fairseq's TPU mode"),
        (("--tpu",), r"^--tpu: is fairseq's TPU mode"),
        (("--fp16",), r"^--fp16: needs a GPU, and --cpu is given; leave it out to train in float32$"),
        (("--memory-efficient-fp16",), r"^--fp16: needs a GPU"),
        (
            ("--amp",),
            r"^--amp: fairseq divides gradients by the loss scale twice, .*; pass --autocast bfloat16, or ",
        ),
        (("--tf32",), r"^--tf32: is for GPUs; leave it out$"),
        (("--best-checkpoint-metric", "mean_recall"), r"is measured with --valid-retrieval only; pass it as well$"),
        (
            ("--best-checkpoint-metric", "mean_recall_de", "--valid-retrieval"),
            r"pass --maximize-best-checkpoint-metric$",
        ),
        (("--batch-size", "0"), r"^--batch-size 0: is too small; give 1 or more$"),
        (("--max-tokens", "-1"), r"^--max-tokens -1: is too small; give 1 or more$"),
        (
            ("--log-file", "{}/file/log.txt"),
            r"^--log-file: the directory .*/file cannot be made: ",
        ),
        (
            ("--tensorboard-logdir", "{}/file/below"),
            r"^--tensorboard-logdir: the directory .*/file/below cannot be made: ",
        ),
        (("--log-file", "{}"), r"^--log-file .*: is a directory; give the name of a file$"),
        (("--save-dir", ""), r"^--save-dir: is empty; give a directory$"),
        (("--save-dir", "{}/file"), r"^--save-dir .*/file: is not a directory; give another one$"),
        (("--save-dir", "{}/file/below"), r"^--save-dir .*/file/below: is not a directory; give another one$"),
    ],
)
def test_one_sentence_before_the_data_are_read(
    options: Sequence[str], sentence: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """The data directory does not exist: whatever looked at it first would say so."""
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_best.pt").touch()
    command = caption_options(tmp_path / "nowhere", tmp_path / "run", *(one.format(tmp_path) for one in options))
    with pytest.raises(UserError, match=sentence):
        run_train(*command)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--encoder-attention-heads", "5"),
            "--encoder-attention-heads 5: does not divide --encoder-embed-dim 32",
        ),
        (
            ("--projector-attention-heads", "5"),
            "--projector-attention-heads 5: does not divide the text encoder's width",
        ),
        (("--encoder-embed-dim", "0"), "--encoder-embed-dim 0: is too small; give 1 or more"),
        (("--arch", "mte_tiny"), "--arch mte_tiny: is not a model of images and texts"),
        (("--projector-layers", "-1"), "--projector-layers -1: is too small; give 0 or more"),
        (("--dropout", "2"), "--dropout 2.0: is not a probability; give a number from 0 to 1"),
        (("--lr", "-1"), "--lr -1.0: is not a learning rate; give a number of 0 or more"),
        (("--seed", "-1"), "--seed -1: is not a seed; give a number from 0 to"),
        (("--contrast-block-rows", "-2"), "--contrast-block-rows -2: is not a number of rows; give one, or 0"),
        (("--update-freq", "0"), "--update-freq 0: is too small; give 1 or more"),
        (("--max-update", "-3"), "--max-update -3: is not a limit; give a number of 0 or more"),
        (("--clip-norm", "nan"), "--clip-norm nan: is not a limit; give a number of 0 or more"),
    ],
)
def test_sizes_that_do_not_fit_name_the_option(
    options: Sequence[str], sentence: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        run_train(*caption_options(tiny_corpus, tmp_path / "run", *options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--temprature", "0.1"), "error: unrecognized arguments: --temprature 0.1; mclip-doctor options prints"),
        (("--lr", "nan"), "error: argument --lr: invalid value: 'nan'; "),
    ],
)
def test_an_option_that_cannot_be_read_is_one_line(
    options: Sequence[str], sentence: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError) as ended:
        run_train(*caption_options(tiny_corpus, tmp_path / "run", *options))
    status, line, *rest = str(ended.value).splitlines()
    assert "exit status 2" in status
    assert sentence in line
    assert not rest


def test_decoder_heads_name_the_option(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    command = mte_options(tiny_corpus, tmp_path / "run")
    with pytest.raises(UserError, match=r"^--decoder-attention-heads 5: does not divide the text encoder's width 32; "):
        run_train(*command, "--batch-size", "8", "--decoder-attention-heads", "5")


def test_what_only_fairseq_and_hydra_refuse_is_a_sentence() -> None:
    """Raised before our checks: no architecture, and a value of a wrong type. Everything else is a bug."""
    parser = fairseq_options.get_training_parser()
    with pytest.raises(RuntimeError) as missing:
        fairseq_options.parse_args_and_arch(parser, ["data"])
    assert launch.sentence_of(missing.value).startswith("--arch is not given; pass a model or one of its architectures")
    wrong = HydraException("Value 'x' is not a number\n  full_key: lr")
    assert launch.sentence_of(wrong) == "Value 'x' is not a number"
    assert launch.sentence_of(UserError("data: not found")) == "data: not found"
    assert launch.sentence_of(RuntimeError("CUDA error")) == ""


def test_the_directory_of_the_log_file_is_made(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "today" / "log.txt"
    common = ("--num-workers", "0", "--disable-validation", "--max-update", "1", "--no-save")
    run_train(*caption_options(tiny_corpus, tmp_path / "run", *common, "--log-file", log))
    assert "done training" in log.read_text(encoding="utf-8")


def test_a_batch_needs_a_size(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    command = caption_options(tiny_corpus, tmp_path / "run")
    at = command.index("--batch-size")
    with pytest.raises(UserError, match=r"^neither --batch-size nor --max-tokens is given; pass one of them$"):
        run_train(*command[:at], *command[at + 2 :])


def test_a_run_that_has_begun_no_longer_needs_what_it_started_from(
    tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    common = ("--num-workers", "0", "--disable-validation", "--max-update")
    run_train(*caption_options(tiny_corpus, tmp_path / "one", *common, "1"))
    start_from = ("--finetune-from-model", tmp_path / "one" / "checkpoint_last.pt")
    run_train(*caption_options(tiny_corpus, tmp_path / "two", *common, "1", *start_from))
    shutil.rmtree(tmp_path / "one")
    run_train(*caption_options(tiny_corpus, tmp_path / "two", *common, "2", *start_from))
    assert state_of(tmp_path / "two")["optimizer_history"][-1]["num_updates"] == 2


def test_a_process_ends_with_one_line_and_status_2(tmp_path: Path, fairseq_cli: Callable[..., object]) -> None:
    """Through the console script; the data directory does not exist either."""
    command = caption_options(tmp_path, tmp_path / "run", "--user-dir", ROOT / "mclip_fairseq", "--cpu", "--fp16")
    result = fairseq_cli("fairseq-train", *command, check=False)
    assert isinstance(result, subprocess.CompletedProcess)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if " | INFO | " not in line]
    assert lines == ["fairseq-train: error: --fp16: needs a GPU, and --cpu is given; leave it out to train in float32"]
    assert all(" | INFO | " in line for line in result.stdout.splitlines()), result.stdout


HOLDER = """
import sys, time
from mclip_fairseq.resilience.holding import held
with held(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_one_run_holds_its_directory(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """The second is told who does; a holder that is killed leaves nothing behind."""
    folder, log = tmp_path / "run", tmp_path / "log"
    command = caption_options(tiny_corpus, folder, "--num-workers", "0", "--max-update", "1", "--disable-validation")
    holder = start((sys.executable, "-c", HOLDER, folder), log)
    try:
        wait_for("holds", log, holder)
        with pytest.raises(UserError, match=rf"another run holds it \(process {holder.pid} on {host_name()}, since 20"):
            run_train(*command)
        assert list(folder.glob("*.pt")) == []
        unfinished = folder / "checkpoint_last.pt.elsewhere.1.tmp"
        unfinished.touch()
        run_train(*command, "--no-save")  # writes nothing there, and removes nothing
        assert unfinished.exists()
    finally:
        holder.kill()
        holder.wait()
    assert "process" in (folder / holding.LOCK).read_text()
    run_train(*command)
    assert not unfinished.exists()
    assert (folder / "checkpoint_last.pt").exists()
    assert (folder / holding.LOCK).read_text() == "", "no host name stays in what is copied from there"


@pytest.mark.distributed
def test_every_rank_of_the_second_run_says_so(tiny_corpus: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = caption_options(tiny_corpus, folder, "--num-workers", "0", "--max-update", "1", "--disable-validation")
    holder = start((sys.executable, "-c", HOLDER, folder), log)
    try:
        wait_for("holds", log, holder)
        (outputs,) = train_on_ranks(2, [command], tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert all("exit status UserError: --save-dir" in text and "another run holds it" in text for text in outputs)
    (outputs,) = train_on_ranks(2, [command], tmp_path)
    assert all(text.endswith("exit status 0\n") for text in outputs), outputs


def test_an_interrupt_is_one_line(tiny_corpus: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = caption_options(tiny_corpus, tmp_path / "run", "--num-workers", "0", "--max-update", "100000")
    options = ("--user-dir", ROOT / "mclip_fairseq", "--cpu", "--disable-validation", "--no-save")
    process = start((sys.executable, "-m", "fairseq_cli.train", *command, *options), log)
    try:
        wait_for("| train_inner | {", log, process)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == launch.INTERRUPTED
    finally:
        process.kill()
    text = log.read_text()
    assert text.rstrip().endswith(": interrupted")
    assert "Traceback" not in text


def test_other_steps_after_a_stop_are_named(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    common = ("--num-workers", "0", "--disable-validation", "--max-update")
    run_train(*caption_options(tiny_corpus, tmp_path, *common, "1"))
    said = "checkpoint_last.pt was written with "
    assert said not in run_train(*caption_options(tiny_corpus, tmp_path, *common, "2"))
    more = ("--lr", "0.001", "--weight-decay", "0.1", "--clip-norm", "2", "--text-text-scale", "3")
    log = run_train(*caption_options(tiny_corpus, tmp_path, *common, "3", *more))
    assert f"{said}--lr [0.003] (now [0.001]); --clip-norm 0.0 (now 2.0); --weight-decay 0.0 (now 0.1); --text" in log


@pytest.mark.parametrize(
    ("option", "value", "reset"),
    [
        ("--lr-scheduler", "inverse_sqrt", "--reset-lr-scheduler"),
        ("--optimizer", "mclip_lamb", "--reset-optimizer"),
    ],
)
def test_state_of_another_component_is_not_read(
    option: str, value: str, reset: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    common = ("--num-workers", "0", "--disable-validation", "--max-update")
    run_train(*caption_options(tiny_corpus, tmp_path, *common, "1"))
    other = (*common, "2", option, value)
    with pytest.raises(UserError, match=rf"was written with {option} \w+ \(now {value}\), .* or pass {reset} to rest"):
        run_train(*caption_options(tiny_corpus, tmp_path, *other))
    run_train(*caption_options(tiny_corpus, tmp_path, *other, reset))
    assert state_of(tmp_path)["optimizer_history"][-1]["num_updates"] >= 1
