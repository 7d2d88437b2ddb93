"""Shows runs: the page of one run, tables of runs, and published results beside them."""
