"""Shows the page of one run, and tables of runs beside published results."""
