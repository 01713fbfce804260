"""`python -m resnetjax` is the `resnetjax` command."""

from resnetjax.cli import main

main()
