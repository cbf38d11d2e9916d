"""HTTP: parse, call one application method, encode."""
