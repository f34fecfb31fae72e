"""Many runs held against each other: strategies, budgets, metrics."""
