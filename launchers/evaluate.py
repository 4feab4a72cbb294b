"""Accuracy of a model on benchmarks: deepspeed launchers/evaluate.py --config FILE.yaml"""

from capo_ds.commands.evaluate import main

if __name__ == "__main__":
    main()
