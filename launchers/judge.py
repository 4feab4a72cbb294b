"""Grade one answer against one reference: python launchers/judge.py ANSWER REFERENCE"""

from capo_ds.commands.judge import main

if __name__ == "__main__":
    main()
