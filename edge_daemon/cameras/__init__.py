"""Cameras behind one contract (`base.Camera`); each kind in a file of its own."""
