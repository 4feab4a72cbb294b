"""Merge an adapter: `python launchers/merge.py --adapter RUN/adapter --output FOLDER`."""

from capo_ds.commands.merge import main

if __name__ == "__main__":
    main()
