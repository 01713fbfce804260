"""Score a net, or the best of a training run, on a data set.

python scripts/evaluate.py runs/digits digits --split test

It does what `resnetjax evaluate` does.
"""

import sys

from resnetjax.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
