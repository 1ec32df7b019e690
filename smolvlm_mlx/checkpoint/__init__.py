"""A folder <-> a model: find, check, load, quantize, adapt and convert checkpoints."""
