"""Make one HTML page of a run: python launchers/report.py RUN"""

from capo_ds.commands.report import main

if __name__ == "__main__":
    main()
