"""Entry point of ``python -m clip_negatives`` and ``torchrun -m clip_negatives``."""

from clip_negatives.cli import main

if __name__ == "__main__":
    main()
