"""Datasets: tokens, captions and their columns, pixels, sampling."""

from mclip_fairseq.compat import import_fairseq

import_fairseq()
