"""The table of bars: every op against what it replaces, on this machine.

    python benchmarks/ops.py --out benchmarks/results/ops.json

The same as ``foveal bench ops``; exits with 1 where a bar is not met.
"""

import argparse
import sys

from foveal.bench import bench_ops

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--only", help="cases whose name contains this")
parser.add_argument("--out", help="JSON file for the figures")
parser.add_argument("--repeats", type=int, default=9)
arguments = parser.parse_args()
sys.exit(0 if bench_ops(arguments.only, arguments.out, arguments.repeats) else 1)
