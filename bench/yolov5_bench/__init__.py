"""`make bench`: the endpoint against what one would use instead, on the same cores, in one run."""
