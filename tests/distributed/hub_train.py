"""launchers/train.py on another hub and cache: hub_train.py ADDRESS CACHE ARGUMENTS.

The library reads its own variables at import, and forked ranks have imported it.
"""

import sys

from capo_ds.commands.train import main
from tests.distributed.fake_hub import places

if __name__ == "__main__":
    for module, name, value in places(sys.argv.pop(1), sys.argv.pop(1)):
        setattr(module, name, value)
    main()
