"""What a run of days needs: exact resumption, signals, and faults that end a run well."""

from mclip_fairseq.compat import import_fairseq

import_fairseq()
