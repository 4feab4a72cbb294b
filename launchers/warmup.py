"""Supervised warm-up: deepspeed launchers/warmup.py --config FILE.yaml"""

from capo_ds.commands.warmup import main

if __name__ == "__main__":
    main()
