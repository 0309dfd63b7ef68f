"""What every training imports, registered and out of reach of garbage collection.

A process of tests imports it before its first training, and the server of the ranks (`tests.runs.start_ranks`) before
it forks them: they share its modules.
"""

import gc

import mclip_fairseq  # noqa: F401  # first, so that fairseq imports no scores

# isort: split
import fairseq_cli.train  # noqa: F401
import pytest  # noqa: F401

import tests.runs  # noqa: F401
from mclip_fairseq.registration import register

register()
from transformers import AutoModel, AutoTokenizer, CLIPModel, SwinModel  # noqa: E402, F401

gc.collect()
gc.freeze()
