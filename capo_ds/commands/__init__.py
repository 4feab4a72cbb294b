"""What users run: `capo NAME ...`, `launchers/NAME.py`, `python -m capo_ds.commands.NAME`."""

import signal

# These are programs: Ctrl-C while they still import ends them without a traceback of ours. Later
# it is `interruption.Interruption` that listens.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
