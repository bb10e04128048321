"""`python -m ferret_core.cli` is `ferret`."""

from ferret_core.cli import main

main()
