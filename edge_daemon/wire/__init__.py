"""Messages on ZeroMQ: models, codecs and schemas. Imports nothing but the core."""
