"""``python -m inferapi`` is the ``inferapi`` command."""

from inferapi.cli import main

main()
