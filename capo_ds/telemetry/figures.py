"""The figures that can be drawn, in words; `plots` draws them, and takes a second to load."""

FIGURES = {
    "conflict": "Figure 1: shares of samples whose gradient conflicts with g_0, and with what is "
    "applied.",
    "evaluation": "Figure 3: greedy accuracy on the test problems over steps, a panel per "
    "benchmark.",
    "reward": "Figure 4: mean training reward over steps, for the values of what differs.",
    "phases": "Seconds per step by phase, over the whole run (evaluations and checkpoints "
    "included).",
}
