"""The options of the model `altclip`."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum

from mclip_fairseq.models.pooling import POOLING
from mclip_fairseq.models.student_heads import HEADS
from mclip_fairseq.models.teacher_learning import TeacherLearningModelConfig


@dataclass
class AltCLIPModelConfig(TeacherLearningModelConfig):
    """The student, and what of the assembled dual encoder is trained."""

    pooling: ChoiceEnum(list(POOLING)) = field(  # type: ignore[valid-type]
        default="first", metadata=TeacherLearningModelConfig.__dataclass_fields__["pooling"].metadata
    )
    student_head: ChoiceEnum(HEADS) = field(  # type: ignore[valid-type]
        default="norm_linear", metadata=TeacherLearningModelConfig.__dataclass_fields__["student_head"].metadata
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout of the student (AltCLIP trains without)"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    pooled_dim: int = field(
        default=0, metadata={"help": "width of the teacher's text states; 0: read it off the features or the teacher"}
    )
    pooled_image_dim: int = field(
        default=0, metadata={"help": "width of the image states before the projection; 0: images come projected"}
    )
    logit_scale_init: float = field(
        default=0.0, metadata={"help": "initial factor of the cosine; 0: the teacher's, or 100 where it is unknown"}
    )
    train_vision: bool = field(
        default=False, metadata={"help": "train a copy of the teacher's image tower; needs --image-root and --teacher"}
    )
    train_projections: bool = field(
        default=False,
        metadata={"help": "train the projections of texts and, from pixels or features of space pooled, of images"},
    )
    train_scale: bool = field(default=False, metadata={"help": "train the factor of the cosine"})
    train_word_head: bool = field(
        default=False, metadata={"help": "train the output layer for words too, with --masked-word-weight"}
    )
    inverse_layers: int = field(
        default=0,
        metadata={
            "help": "number of layers between the student's token states and the teacher's frozen text tower, which "
            "reads them instead of word embeddings (AltCLIP's variant invert: 3, with --student-head linear and "
            "--dropout 0.1); needs --teacher; 0 compares the student's pooled state with the teacher's"
        },
    )
    text_tower: str = field(default="", metadata={"help": "set by --inverse-layers: the tower's sizes as JSON"})
    vision_tower: str = field(default="", metadata={"help": "set by --train-vision: sizes and image processor as JSON"})
