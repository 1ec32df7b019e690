"""`smolvlm-mlx chat`: a conversation in the terminal, or line by line over a pipe."""
