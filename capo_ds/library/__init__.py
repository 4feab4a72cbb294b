"""What the package offers to the code of others; `capo_ds` itself names it."""
