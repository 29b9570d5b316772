"""A run's process leaves with the comparison's, which can pass nothing on once it is killed."""

import os
import signal
import threading
import time


def leave_with_parent(parent: int) -> None:
    """From now on this process gets a SIGTERM, and so saves itself, once the process `parent` is not its parent."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="leaves with its parent").start()
