"""fairseq models, their towers and projectors."""

from mclip_fairseq.compat import import_fairseq

import_fairseq()
