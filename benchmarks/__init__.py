"""What batching costs, beside other libraries and beside the least possible. `python -m benchmarks` runs all of it."""
