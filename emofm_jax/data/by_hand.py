"""Preparation in stages that are started by hand, as jobs of SLURM or Kubernetes (docs/scaling.md).

    .NAME.stages/DIGEST/count-16/     what was found by the jobs of 16 shards, a file a job
    .NAME.stages/DIGEST/merge/        vocabularies, and the schema that they complete
    .NAME.stages/DIGEST/encode-16/    encoded rows, a file a job

NAME is that of config.data.dir, beside which this lies; DIGEST is of configuration, raw files and
base, so that what belongs to others is never read. Each command does what is missing, and does
nothing twice; the last one puts the shards in their place and removes the rest.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from ml_collections import ConfigDict

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import directories, engines, files, passes, preparation, stages, storage
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema
from emofm_jax.data.source import Source
from emofm_jax.errors import UserError

NAMES = ("count", "merge", "encode", "publish")
_SLOTS = "slots"  # file that has what was learned of them
# Who reads must be who wrote.
_CODE = sorted(Path(__file__).parent.rglob("*.py"))
_SHARED = ("count", "encode")  # that have shards
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


class Shard(NamedTuple):
    """The part of a stage that a command does: 1 of 16, say."""

    number: int
    of: int


def run(
    config: ConfigDict, stage: str, shard: str, base: Path | None = None, workers: int = 0
) -> counts_lib.Report | str:
    """Does one stage of a preparation.

    Args:
      config: whole and validated.
      stage: one of NAMES.
      shard: as in "3/16", of count and encode.
      base: as of `preparation.prepare`.
      workers: processes of this machine; 0 = a core each.

    Returns:
      The report, of publish; else what was done, in words.

    Raises:
      UserError: bad options, rows or files; what an earlier stage leaves is missing.
    """
    part = _shard(stage, shard)
    if config.prepare.format == "synthetic":
        problem = "made-up data are made at once"
        raise UserError(f"--stage={stage}: {problem}; leave it out")
    why = "stages find each other's files where they lie on a file system"
    storage.local("config.prepare.source", config.prepare.source, why)
    storage.local("config.data.dir", config.data.dir, why)
    plan = passes.plan(config, preparation.base_of(config, base))
    target = directories.place(Path(config.data.dir))
    above = target.with_name(f".{target.name}.stages")
    place = above / _digest(plan)
    if stage == "merge":
        return _merge(plan, place)
    if stage == "publish":
        report = preparation.publish(config, lambda new: _publish(plan, place, new))
        directories.remove(above)
        return report
    assert part
    if stage == "count":
        if not any(stages.learned_slots(plan.schema)):
            return "nothing is to be counted: no slot needs it; go on with --stage=merge"
        make = lambda: _of_count(plan, part.of)
    else:
        slots = _merged(place)
        make = lambda: _of_encode(plan, slots.schema, place, part.of)
    return _do(make, place, stage, part, workers)


def _shard(stage: str, text: str) -> Shard | None:
    """The shard that --shard names, None where the stage has none."""
    if stage not in NAMES:
        known = f"choose one of {', '.join(NAMES)}"
        raise UserError(f"--stage={stage}: it is not known; {known}, in this order")
    if stage not in _SHARED:
        if text:
            raise UserError(f"--shard={text}: --stage={stage} is one command; leave it out")
        return None
    found = _SHARD.fullmatch(text)
    part = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= part.number <= part.of:
        remedy = "name the share of this command, as in --shard=3/16"
        raise UserError(f"--shard={text!r}: no share of --stage={stage}; {remedy}")
    return part


def _digest(plan: passes.Plan) -> str:
    """A digest of all that the shards depend on, as far as it is known before rows are read."""
    about = {
        "code": [xxhash.xxh3_64_hexdigest(file.read_bytes()) for file in _CODE],
        "schema": plan.schema.to_json(),
        "files": {split: [_about(f) for f in of] for split, of in plan.source.files.items()},
        "base": plan.base and [plan.base.place, plan.base.schema.identity],
    }
    return xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())


def _about(file: RawFile) -> list[Any]:
    found = file.path.stat()
    return [str(file.path), found.st_size, found.st_mtime_ns]


def _of_count(plan: passes.Plan, num_shards: int) -> stages.Stage:
    jobs = stages.jobs_of(plan.source.recipe, plan.source.of_training, num_shards)
    return stages.Stage(plan.source, plan.schema, None, jobs)


def _of_encode(plan: passes.Plan, schema: Schema, place: Path, num_shards: int) -> stages.Stage:
    jobs = stages.jobs_of(plan.source.recipe, plan.source.files, num_shards)
    return stages.Stage(plan.source, schema, place / "merge", jobs)


def _do(make: Callable[[], stages.Stage], place: Path, name: str, part: Shard, workers: int) -> str:
    """Does the jobs of a shard that have not been done; says so.

    The first shard makes the stage, for which files are looked through; the others read it.
    """
    directory = place / f"{name}-{part.of}"
    files.make_directory(directory)
    if (stage := stages.read_stage(directory)) is None:
        stage = make()
        stages.write_stage(stage, directory)
    own = range(part.number - 1, len(stage.jobs), part.of)
    tasks = [(directory, number) for number in own if not stages.is_done(directory, number)]
    num_workers = min(workers or engines.num_cores(), len(tasks))
    if num_workers > 1:
        with contextlib.closing(engines.make("local", num_workers)) as engine:
            for _ in engine.map(stages.run_once, tasks):
                pass
    else:
        for task in tasks:
            stages.run_once(task)
    done = f"jobs done: {len(tasks)}" if tasks else "no job was left"
    return f"--stage={name} --shard={part.number}/{part.of}: {done}, of {len(stage.jobs)} in all"


def _merge(plan: passes.Plan, place: Path) -> str:
    """Completes the schema from what was counted."""
    with directories.whole(place / "merge", "merges", "--stage=merge") as new:
        slots = passes.learn(_Left(plan, place), plan, new)
        files.write_scratch(new / _SLOTS, [slots._replace(vocabularies={})])
    return f"--stage=merge: {len(slots.vocabularies)} vocabularies are made"


def _merged(place: Path) -> passes.Slots:
    """What `_merge` left."""
    path = place / "merge" / _SLOTS
    if not path.exists():
        what = "nothing was merged for this configuration, these files and this base"
        raise UserError(f"--stage=merge: {what}; run it first")
    (slots,) = files.read_scratch(path)
    return slots


def _publish(plan: passes.Plan, place: Path, directory: Path) -> counts_lib.Report:
    """Fills the directory of the shards."""
    slots, left = _merged(place), _Left(plan, place)
    left.check("encode")
    for name in ("vocabulary", "rare"):
        if (place / "merge" / name).exists():
            directories.copy(place / "merge" / name, directory / name)
    return passes.finish(left, plan, slots, directory)


class _Left(stages.Runner):
    """Reads what the shards of a stage have left."""

    def __init__(self, plan: passes.Plan, place: Path):
        super().__init__(None, place, progress=False)
        self._plan, self._place = plan, place

    def items(
        self,
        source: Source,
        schema: Schema,
        vocabularies: Mapping[str, Any] | None,
        splits: Mapping[str, Sequence[RawFile]],
        what: str,
    ) -> Generator[tuple[str, Any], None, None]:
        """See `Runner`; raises UserError if a shard was not run, too."""
        directory, stage = self.check("count" if vocabularies is None else "encode")
        heard = stages.Heard(stage)
        for number, job in enumerate(stage.jobs):
            yield from ((job.split, item) for item in heard.items(directory, number))

    def check(self, name: str) -> tuple[Path, stages.Stage]:
        """A directory of count or encode all of whose jobs are done, and its stage."""
        missing = {}
        for directory in sorted(self._place.glob(f"{name}-*")):
            count = int(directory.name.removeprefix(f"{name}-"))
            stage, done = stages.read_stage(directory), [False] * count
            if stage:
                done = [stages.is_done(directory, number) for number in range(len(stage.jobs))]
            if all(done):
                assert stage
                return directory, dataclasses.replace(stage, source=self._plan.source)
            left = sorted({i % count + 1 for i, is_done in enumerate(done) if not is_done})
            missing[count] = left
        if not missing:
            what = "no shard was run for this configuration, these files and this base"
            raise UserError(f"--stage={name}: {what}; run them first")
        count, left = min(missing.items(), key=lambda of: len(of[1]))
        which = ", ".join(map(str, left[:8])) + (", ..." if len(left) > 8 else "")
        what = f"{len(left)} of {count} shards are not done ({which})"
        raise UserError(f"--stage={name}: {what}; run --stage={name} --shard={left[0]}/{count}")
