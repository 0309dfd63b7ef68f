"""Options of every task of sampled batches."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from mclip_fairseq.data.sampling import TAILS


@dataclass
class SampledTaskConfig(FairseqDataclass):
    """What every task of sampled batches offers."""

    skip_nonfinite: int = field(
        default=0,
        metadata={"help": "how many batches whose loss or features are not finite training may skip before it stops"},
    )
    skip_budget: int = field(
        default=0,
        metadata={
            "help": "how many unusable lines and images training may skip (listed in SAVE_DIR/skipped.tsv); 0: stop at "
            "the first. Validation never skips"
        },
    )
    tail_batches: ChoiceEnum(TAILS) = field(  # type: ignore[valid-type]
        default="warn",
        metadata={
            "help": "a language's last batch with less than half of the samples of the batch before it: warn keeps it "
            "and says so, fill adds samples of the batches before it, drop leaves it out",
            "data_position": True,
        },
    )
    autocast: ChoiceEnum(["none", "bfloat16"]) = field(  # type: ignore[valid-type]
        default="none",
        metadata={
            "help": "bfloat16: compute the model in bfloat16 where torch.autocast does, on GPUs and CPUs; parameters, "
            "gradients, optimizer and losses stay in float32"
        },
    )
    tf32: bool = field(
        default=False,
        metadata={"help": "compute products of float32 matrices in TF32, with 10 bits of mantissa (recent GPUs)"},
    )
    contrast_block_rows: int = field(
        default=-1,
        metadata={
            "help": "rows of logits of a contrast that exist at once: fewer take less memory; 0: all of them; -1: all "
            "up to 4,096 rows of one rank, beyond it as many as 64 MiB hold"
        },
    )
    save_dir: str = II("checkpoint.save_dir")
    seed: int = II("common.seed")
