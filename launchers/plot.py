"""Draw figures from the logs of runs: python launchers/plot.py RUN [RUN...]"""

from capo_ds.commands.plot import main

if __name__ == "__main__":
    main()
