"""From noise to data, and back: plans, problems for solvers, trajectories."""
