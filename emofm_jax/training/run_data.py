"""Which data a run is of: where they lie, and whether they are those that it was trained on."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax.data import files, shards, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError

PARENT = "parent.json"


def trained_days(workdir: Path, schema: schema_lib.Schema) -> list[str]:
    """The days that a run was trained on, and before them those of the runs that it started from.

    Raises:
      UserError: parent.json is damaged.
    """
    path = workdir / PARENT
    with files.undamaged(path, "restore it"):
        before = files.read_json(path)["days"] if path.exists() else []
        return [*before, *(day for day in schema.days if day not in before)]


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
      workdir: of the run.
      config: of the run; a relative `data.dir` is seen from here, and if the data are not there,
        from the directories above the run, the nearest first.
      schema: of the run, with the identity of the data that it was trained on.
    """

    workdir: Path
    config: ConfigDict
    schema: schema_lib.Schema

    def find(self) -> Path:
        """The directory of the data.

        Raises:
          UserError: no data, or only other ones.
        """
        other, remedy = "", "prepare the run's data again, or name others by --data"
        for place in self._places():
            if not (place / "schema.json").exists():
                continue
            there = schema_lib.load(place)
            differs = self._difference(there)
            if not differs:
                return place
            if not other:
                other = f"{place}: not the data of {self.workdir}: {differs}"
                remedy = schema_lib.remedy(self.schema, there, remedy)
        nowhere = "no prepared data, seen from here or from above the run"
        raise UserError(f"{other or f'{self.config.data.dir}: {nowhere}'}; {remedy}")

    def open(self, split: str, directory: str = "") -> shards.Split:
        """Opens a split of the run's own data, or of those in a directory.

        Raises:
          UserError: as `find` and `shards.open_split` do.
        """
        if directory:
            return shards.open_split(storage.reading(directory), split, self.schema)
        found = shards.open_split(self.find(), split, self.schema)
        if schema_lib.other_rows(self.schema, found.schema):
            raise UserError(f"{found.path}: {shards.ANEW}")
        return found

    def open_valid(self, directory: str, beside: shards.Split | None) -> shards.Split:
        """Opens the validation split of a directory, if it has one, or of the run's own data.

        Raises:
          UserError: as `open` does; it is of another preparation than the split beside it.
        """
        has = bool(directory) and (storage.reading(directory) / "valid").is_dir()
        found = self.open("valid", directory if has else "")
        together = beside is not None and beside.path.parent == found.path.parent
        if beside and together and beside.schema.identity != found.schema.identity:
            raise UserError(f"{found.path}: {shards.ANEW}")
        return found

    def is_own(self, split: shards.Split) -> bool:
        """Whether a split is of the data that the run was trained on, in their place."""
        if schema_lib.other_rows(self.schema, split.schema):
            return False
        return split.path.parent.resolve() in [place.resolve() for place in self._places()]

    def _places(self) -> list[Path]:
        typed = storage.reading(self.config.data.dir)
        above = () if typed.is_absolute() else self.workdir.resolve().parents
        return [typed, *(parent / typed for parent in above)]

    def _difference(self, data: schema_lib.Schema) -> str:
        if changed := schema_lib.difference(self.schema, data):
            return f"they have another schema ({changed})"
        return schema_lib.other_rows(self.schema, data)
