"""The judge, pure: numpy in, numpy out, time is an argument; no files, sockets or threads."""
