"""fairseq optimizers."""

from mclip_fairseq.compat import import_fairseq

import_fairseq()
