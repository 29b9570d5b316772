"""Looks all through HDF5 files in a process of its own, which may crash, hang or eat memory without harm.

Started by `hdf5_trial` as a script, so that it imports neither TensorFlow nor the rest of the project.
It is handed a request and an open file at a time through the socket that is its standard input, and
answers each with a line: empty if all is well, else what is wrong.
"""

import json
import os
import resource
import socket

import h5py
from file_range import FileRange  # type: ignore[import-not-found]  # as a script it stands beside it

_FLOOR_BYTES = 100 << 20
_LARGEST_RATIO = 1100
_ROOM_BYTES = 2 << 30  # beside the file itself; HDF5 believes lengths in a damaged file and asks for that much


def look_through(content: FileRange) -> None:
    """Touches every structure that a reader will touch; data only where they are packed in chunks."""
    with h5py.File(content, "r") as file:
        _look_at(file)
        seen: set[int] = set()
        groups: list[h5py.Group] = [file["/"]]
        for group in groups:
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:
                continue
            seen.add(address)
            for name in group:
                if isinstance(group.get(name, getlink=True), h5py.HardLink):
                    child = group[name]
                    _look_at(child)
                    if isinstance(child, h5py.Group):
                        groups.append(child)


def _look_at(thing) -> None:
    for name in getattr(thing, "attrs", {}):
        thing.attrs[name]
    if isinstance(thing, h5py.Dataset):
        layout = thing.id.get_create_plist()
        kind = layout.get_layout()
        thing.id.get_storage_size(), thing.id.get_offset(), thing.fletcher32, thing.shape
        # What unpacks to so much more than is there is refused by its size, and would only keep this busy.
        bearable = _FLOOR_BYTES + _LARGEST_RATIO * thing.id.get_storage_size()
        if kind == h5py.h5d.CHUNKED and thing.dtype.kind in "biufcV" and thing.shape and thing.nbytes <= bearable:
            for chunk in thing.iter_chunks():
                thing[chunk]
        elif kind == h5py.h5d.COMPACT and thing.dtype.kind in "biufcV":
            thing[()]


def main() -> None:
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            message, descriptors, _, _ = socket.recv_fds(requests, 4096, 1)
            if not message:
                return
            request = json.loads(message)
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            limit = _ROOM_BYTES + 2 * request["size_bytes"]
            resource.setrlimit(
                resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
            )
            with os.fdopen(descriptors[0], "rb") as file:
                answer = ""
                try:
                    look_through(FileRange(file, request["start"], request["size_bytes"]))
                except Exception as error:  # noqa: BLE001  whatever it is, it is an answer
                    answer = f"{type(error).__name__}: {error}".splitlines()[0]
            requests.sendall((json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
