"""log p(x): exact through the trace of the ODE, bounds, bits per dimension."""
