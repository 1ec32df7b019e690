"""Files and messages to arrays: numpy, Pillow, tokenizers, jinja2; no MLX."""
