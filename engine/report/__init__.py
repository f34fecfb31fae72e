"""Reports and plots of runs, comparisons, sweeps and studies."""
