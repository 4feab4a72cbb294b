"""The paper's Table 1: python launchers/reproduce.py"""

from capo_ds.commands.reproduce import main

if __name__ == "__main__":
    main()
