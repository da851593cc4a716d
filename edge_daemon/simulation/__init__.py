"""Seeded pictures of parts on a line, with scripted defects: the quick start, the tests, training data."""
