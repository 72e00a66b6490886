"""Command line: ``python -m speechbrain_vq``."""

from speechbrain_vq.cli import main

if __name__ == "__main__":
    main(prog_name="python -m speechbrain_vq")
