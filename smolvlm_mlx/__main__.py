"""`python -m smolvlm_mlx` is `smolvlm-mlx`."""

from smolvlm_mlx.apps.cli import main

if __name__ == "__main__":
    main()
