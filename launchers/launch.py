"""Start ranks, pass Ctrl-C on, start again after a loss: python launchers/launch.py COMMAND ..."""

from capo_ds.commands.launch import main

if __name__ == "__main__":
    main()
