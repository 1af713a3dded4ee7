"""Training: the loop and its update rules, options and presets, and what is kept of a run."""
