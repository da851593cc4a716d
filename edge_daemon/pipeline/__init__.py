"""Grab, batch, judge, journal, publish: the way of a trigger through the daemon, over protocols."""
