"""Prints the cluster that a training would find in this environment, and the TF_CONFIG that it would get.

srun --ntasks=4 python -m launch.cluster

Exit status: 0, also where there is none; 2 a mistake.
"""

import json
import os
import sys

from absl import app, flags

from launch.cluster import ClusterMistake, command_flags, find_cluster

command_flags.define_flags()
flags.adopt_module_key_flags(command_flags)
flags.DEFINE_bool("json", False, "Print one JSON object, null for no cluster.")


def parse_flags(argv: list[str]) -> list[str]:
    """As the other commands do it: help is no mistake, and a mistake is one message and status 2."""
    if any(argument in ("--help", "-help", "-h", "-?") for argument in argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"regraft: {error}", file=sys.stderr)
        sys.exit(2)


def main(words: list[str]) -> int:
    if words:
        print(f"regraft: Unexpected argument {words[0]!r}; every option is a flag, see --help.", file=sys.stderr)
        return 2
    try:
        cluster = find_cluster(os.environ, flags.FLAGS.cluster, flags.FLAGS.port_base)
    except ClusterMistake as mistake:
        print(f"regraft: {mistake}", file=sys.stderr)
        return 2
    if flags.FLAGS.json:
        fields = ("kind", "workers", "index", "reason", "tf_config")
        print(json.dumps(cluster and {name: getattr(cluster, name) for name in fields}))
    elif cluster is None:
        print("No cluster: this process trains by itself.")
    else:
        print(cluster.reason)
        if cluster.tf_config:
            print(f"TF_CONFIG={cluster.tf_config_json}")
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv[1:])), flags_parser=parse_flags)
