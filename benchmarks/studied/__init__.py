"""The study behind docs/results.md: its list of runs, how one is made, what is told of them."""
