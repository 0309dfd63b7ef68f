"""What a run of several days needs: exact resume, clean stops on signals, and faults that end a run cleanly."""

from mclip_fairseq.compat import import_fairseq

import_fairseq()
