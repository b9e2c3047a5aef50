"""`make bench`: the endpoint compared with alternatives, on the same cores, in one run."""
