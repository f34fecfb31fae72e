"""Studies of many runs: comparison of strategies, sweep over budgets, correlation of metrics."""
