"""Let ``python -m clip_negatives`` and ``torchrun -m clip_negatives`` run the command line."""

from clip_negatives.cli import main

if __name__ == "__main__":
    main()
