"""Prints the cluster that a training would find in this environment, and the TF_CONFIG that it would get.

srun --ntasks=4 python -m launch.cluster

Exit status: 0, also where there is none; 2 a mistake.
"""

import json
import os

from absl import flags

from launch import command_line
from launch.cluster import ClusterMistake, command_flags, find_cluster

command_flags.define_flags()
flags.adopt_module_key_flags(command_flags)
flags.DEFINE_bool("json", False, "Print one JSON object, null for no cluster.")


def main(words: list[str]) -> int:
    if words:
        raise command_line.Mistake(f"Unexpected argument {words[0]!r}; every option is a flag, see --help.")
    cluster = find_cluster(os.environ, flags.FLAGS.cluster, flags.FLAGS.port_base)
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
    command_line.run_plain(main, ClusterMistake)
