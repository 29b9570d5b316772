"""Environment -> TF_CONFIG: which of how many workers this process is, by whatever started it."""

from launch.cluster.choice import KINDS, find_cluster
from launch.cluster.command_flags import define_flags
from launch.cluster.place import Cluster, ClusterMistake

__all__ = ["KINDS", "Cluster", "ClusterMistake", "define_flags", "find_cluster"]
