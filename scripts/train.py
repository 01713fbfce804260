"""Train as a recipe of `configs/` says, or go on with the run of a folder.

python scripts/train.py configs/digits_resnet8.py --workdir runs/digits

It does what `resnetjax train` does.
"""

import sys

from resnetjax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
