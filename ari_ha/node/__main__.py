"""``python -m ari_ha.node SETTINGS``: the app itself, as its parent starts it."""

import sys

from ari_ha.node.main import main

main(sys.argv[1] if len(sys.argv) > 1 else None)
