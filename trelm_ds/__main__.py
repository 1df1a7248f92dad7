"""`python -m trelm_ds`, the form that torchrun starts."""

from trelm_ds.cli import main

if __name__ == "__main__":
    main()
