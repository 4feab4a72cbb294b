"""Check that training can run here: python launchers/doctor.py"""

from capo_ds.commands.doctor import main

if __name__ == "__main__":
    main()
