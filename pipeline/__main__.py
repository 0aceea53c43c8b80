"""`python -m pipeline` is `dlshap`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
