"""The one exception of this package."""


class UserError(ValueError):
    """Something the user can fix: a file, an option, a download.

    The message is one sentence without a full stop, `path, line N: what is wrong; what to do`. Command-line programs
    print it without a traceback and exit with status 2 (`mclip_fairseq.cli.main.run_main`). Everything else that is
    raised is a bug, and keeps its traceback.
    """
