"""What kvattn takes, beside what others take for the same: `python -m benchmarks` runs all of it."""
