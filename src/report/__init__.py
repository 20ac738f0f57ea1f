"""Reading run folders; pictures and tables."""

import os

# Pictures go to files. The back end that a notebook or a desktop asks for may be missing here, and matplotlib
# refuses what it does not know when it is imported.
os.environ["MPLBACKEND"] = "agg"
