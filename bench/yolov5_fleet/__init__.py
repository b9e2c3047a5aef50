"""A fleet of servers with an autoscaler: a simulation, and the check against real ones."""
