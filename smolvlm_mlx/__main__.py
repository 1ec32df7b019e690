"""The console script `smolvlm-mlx`, and `python -m smolvlm_mlx`."""

import signal


def main() -> None:
    """Run the command line; until it is loaded, Ctrl-C ends the program without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from smolvlm_mlx.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
