"""What users run: `capo NAME ...`, `launchers/NAME.py`, `python -m capo_ds.commands.NAME`."""
