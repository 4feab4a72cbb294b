"""The stages of an update: passes, collect, solve, rebuild. `capo_ds/learner.py` lines them up."""
