"""From the dense network and a plan to the smaller network."""
