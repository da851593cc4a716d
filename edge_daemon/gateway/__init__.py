"""The process that speaks to the PLC: an ordinary client of the daemon, it knows the wire and no more."""
