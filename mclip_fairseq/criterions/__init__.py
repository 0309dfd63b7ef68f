"""fairseq criterions: thin glue around `losses`."""

from mclip_fairseq.compat import import_fairseq

import_fairseq()
