"""The questions of the study: one script, one figure, one table each. `make figures` runs them all."""
