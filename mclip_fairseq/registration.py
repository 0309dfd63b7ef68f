"""Registers every component with fairseq by importing it."""

from mclip_fairseq.compat import allow_checkpoint_globals, shield_torchaudio
from mclip_fairseq.launch import support_every_launcher

support_every_launcher()
allow_checkpoint_globals()
shield_torchaudio()

from mclip_fairseq.criterions import mte as mte_criterion  # noqa: E402, F401
from mclip_fairseq.criterions import teacher_learning as teacher_learning_criterion  # noqa: E402, F401
from mclip_fairseq.criterions import trikd as trikd_criterion  # noqa: E402, F401
from mclip_fairseq.models import mclip, mte, teacher_learning  # noqa: E402, F401
from mclip_fairseq.optim import fused_adamw, mclip_lamb  # noqa: E402, F401
from mclip_fairseq.resilience.install import install as install_resilience  # noqa: E402
from mclip_fairseq.tasks import mte as mte_task  # noqa: E402, F401
from mclip_fairseq.tasks import trikd as trikd_task  # noqa: E402, F401

install_resilience()
