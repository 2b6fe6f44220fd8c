"""`python -m loftr_ros.cli`."""

import sys

from loftr_ros.cli.main import main

sys.exit(main())
