"""A store of objects in memory, with what remote.py needs of pyarrow.fs: an object appears as its stream is closed."""

import io

from pyarrow import fs


class Store:
    """Objects by their keys, BUCKET/KEY; `objects` may be looked at and changed."""

    def __init__(self):
        self.objects = {}

    def open_input_stream(self, key, compression):
        if key not in self.objects:
            raise FileNotFoundError(key)
        return io.BytesIO(self.objects[key])

    def open_output_stream(self, key, compression):
        return _Stream(self.objects, key)

    def delete_dir(self, key):
        for name in [name for name in self.objects if name.startswith(f"{key}/")]:
            del self.objects[name]

    def delete_file(self, key):
        del self.objects[key]

    def copy_file(self, key, to):
        self.objects[to] = self.objects[key]

    def get_file_info(self, what):
        if isinstance(what, str):
            return self._info(what)
        below = [
            x.removeprefix(f"{what.base_dir}/")
            for x in self.objects
            if x.startswith(f"{what.base_dir}/")
        ]
        names = below if what.recursive else {name.split("/")[0] for name in below}
        return [self._info(f"{what.base_dir}/{name}") for name in sorted(names)]

    def _info(self, key):
        if key in self.objects:
            return fs.FileInfo(key, fs.FileType.File, mtime_ns=1, size=len(self.objects[key]))
        there = key == "bucket" or any(name.startswith(f"{key}/") for name in self.objects)
        return fs.FileInfo(key, fs.FileType.Directory if there else fs.FileType.NotFound)


class _Stream(io.BytesIO):
    """As pyarrow's: closed by whoever lets go of it, and that publishes what it holds."""

    def __init__(self, objects, key):
        super().__init__()
        self._objects, self._key = objects, key

    def close(self):
        if not self.closed:
            self._objects[self._key] = self.getvalue()
        super().close()

    def __del__(self):
        self.close()
