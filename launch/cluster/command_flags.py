"""The flags that choose a cluster, for every command that starts a training."""

from absl import flags

from launch.cluster.choice import KINDS


def define_flags() -> None:
    flags.DEFINE_enum(
        "cluster",
        "auto",
        KINDS,
        "What says which worker this is. auto: TF_CONFIG, srun, a Kubernetes job, mpirun or a TPU; none: nothing.",
    )
    flags.DEFINE_integer(
        "port_base",
        None,
        "Port of a host's first worker; by default 2222, under Slurm one that follows from the job's number.",
        lower_bound=1,
        upper_bound=65535,
    )
