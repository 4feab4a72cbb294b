"""Train a language model with CAPO or GRPO: deepspeed launchers/train.py --config FILE.yaml"""

from capo_ds.commands.train import main

if __name__ == "__main__":
    main()
