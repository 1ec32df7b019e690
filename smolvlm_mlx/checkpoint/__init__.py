"""A folder <-> a model: find, check, load, quantize, adapt, convert and compare checkpoints."""
