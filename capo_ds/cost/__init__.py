"""What a step will cost on a cluster: counted work and bytes, times its rates.

`cluster` has the rates (measured by `measure`, or from a file), `collectives` the time of one
collective, `step` counts the work of a step, and `forecast` puts them together.
"""
