"""The store and the protocol files beside it: schema, codec, reader, commits."""
