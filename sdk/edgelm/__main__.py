"""`python -m edgelm`: the command, also where its script is on no path."""

from edgelm.cli.start import main

if __name__ == "__main__":
    main()
