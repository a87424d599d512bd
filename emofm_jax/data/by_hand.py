"""Preparation in stages: started by hand, as jobs of SLURM or Kubernetes, or done by a cluster that
shares places at s3:// and nothing else (docs/scaling.md).

    .NAME.stages/DIGEST/count-16/     what was found by the jobs of 16 shards, a file a job
    .NAME.stages/DIGEST/merge/        vocabularies, and the schema that they complete
    .NAME.stages/DIGEST/encode-16/    encoded rows, a file a job

NAME is that of config.data.dir, beside which this lies; DIGEST is of configuration, raw files,
base and versions, so that what belongs to others is never read. Each command does what is missing,
and does nothing twice; the last one puts the shards in their place and removes the rest. At s3://
each file is an object, which appears whole (handover.py); merge is published at once (storage.py).
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from ml_collections import ConfigDict

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import (
    directories,
    engines,
    files,
    handover,
    passes,
    preparation,
    stages,
    storage,
)
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema
from emofm_jax.data.source import Source
from emofm_jax.errors import UserError

NAMES = ("count", "merge", "encode", "publish")
_SLOTS = "slots"  # file that has what was learned of them
_PUBLISHED = "published"  # file that has the identity of the shards, until all else is removed
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
      The report, of publish; else what was done, in words: of a publish that was killed as it
      removed what the stages have left, too.

    Raises:
      UserError: bad options, rows or files; what an earlier stage leaves is missing.
    """
    part = _shard(stage, shard)
    if config.prepare.format == "synthetic":
        problem = "made-up data are made at once"
        raise UserError(f"--stage={stage}: {problem}; leave it out")
    plan, place = _planned(config, base)
    if stage == "merge":
        return _merge(plan, place)
    if stage == "publish":
        return _publish(config, plan, place)
    assert part
    if stage == "count" and not any(stages.learned_slots(plan.schema)):
        return "nothing is to be counted: no slot needs it; go on with --stage=merge"

    own = slice(part.number - 1, None, part.of)
    jobs, missing = _missing(plan, place, f"{stage}-{part.of}", own)
    storage.need(*(file.path for number in missing for file in jobs[number].files))
    _do_here(place, f"{stage}-{part.of}", missing, workers)
    done = f"jobs done: {len(missing)}" if missing else "no job was left"
    return f"--stage={stage} --shard={part.number}/{part.of}: {done}, of {len(jobs)} in all"


def whole(
    config: ConfigDict, base: Path | None, engine: str, workers: int = 0
) -> counts_lib.Report | str:
    """Does all stages; the workers of an engine do the jobs, wherever they are.

    Args:
      config, base: as of `run`.
      engine: of `engines`, whose workers find what they need at s3://.
      workers: of the engine; 0 = all.

    Raises:
      UserError: as `run`.
    """
    plan, place = _planned(config, base)
    if _is_published(config, handover.at(place) / _PUBLISHED):
        return _publish(config, plan, place)

    with contextlib.closing(engines.make(engine, workers)) as found:
        for stage in _SHARED:
            if stage == "encode":
                _merge(plan, place)
            elif not any(stages.learned_slots(plan.schema)):
                continue
            directory = f"{stage}-{4 * found.num_workers}"
            for _ in found.map(stages.run_there, _todo(plan, place, directory)):
                pass
    return _publish(config, plan, place)


def _todo(plan: passes.Plan, place: str, directory: str) -> list[stages.There]:
    """The jobs of a stage that have not been done, for workers anywhere."""
    jobs, missing = _missing(plan, place, directory, slice(None))
    source, code = plan.source.recipe["source"], stages.code()
    reads = (source, *[_of_merge(place)] * directory.startswith("encode"))
    # Each machine looks for itself what there is at s3://.
    of = lambda n: [file.path for file in jobs[n].files] if storage.is_remote(source) else []
    about = lambda n: tuple(map(storage.about, of(n)))
    return [stages.There(place, directory, n, reads, about(n), code) for n in missing]


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
        "code": stages.code(),
        "schema": plan.schema.to_json(),
        "files": {
            split: [storage.about(f.path) for f in of] for split, of in plan.source.files.items()
        },
        "base": plan.base and [files.said(plan.base.place), plan.base.schema.identity],
    }
    return xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True).encode())


def _planned(config: ConfigDict, base: Path | None) -> tuple[passes.Plan, str]:
    """What is to be prepared, and the name of the place of its stages."""
    found = preparation.base_of(config, base)
    preparation.check_target(config)
    plan = passes.plan(config, found, later=True)
    return plan, storage.below(_above(config.data.dir), _digest(plan))


def _above(target: str) -> str:
    """The name of the place of all stages of a directory of shards."""
    if storage.is_remote(target):
        return storage.beside(target, ".", ".stages")
    found = directories.place(Path(target))
    return str(found.with_name(f".{found.name}.stages"))


def _of_merge(place: str) -> str:
    return storage.below(place, "merge")


def _missing(
    plan: passes.Plan, place: str, directory: str, own: slice
) -> tuple[Sequence[stages.Job], list[int]]:
    """All jobs, and the numbers of those of a share that have not been done.

    The first shard makes the stage, for which files are looked through; the others read it.
    """
    # Before a stage is read: its paths are those of the copies that are known by then.
    slots = _merged(place) if directory.startswith("encode") else None
    root = handover.at(place)
    files.make_directory(root / directory)
    there = handover.names(root)
    if f"{directory}/{stages.STAGE}" not in there:
        stage = _stage(plan, place, slots, int(directory.rpartition("-")[2]))
        stages.write_stage(stage, root / directory)

    jobs = stages.read_stage(root / directory).jobs
    found = range(len(jobs))[own]
    missing = [n for n in found if f"{directory}/{stages.name_of(n)}" not in there]
    return jobs, missing


def _stage(
    plan: passes.Plan, place: str, slots: passes.Slots | None, num_shards: int
) -> stages.Stage:
    """The jobs of count or, with what `_merge` left, of encode."""
    of, recipe = plan.source.of_training if slots is None else plan.source.files, plan.source.recipe
    jobs = stages.jobs_of(recipe, of, num_shards)
    if slots is None:
        return stages.Stage(plan.source, plan.schema, None, jobs)
    return stages.Stage(plan.source, slots.schema, storage.reading(_of_merge(place)), jobs)


def _do_here(place: str, directory: str, numbers: Sequence[int], workers: int) -> None:
    """Does jobs by this process, or processes of this machine, and leaves what they find."""
    of, shown = handover.at(place) / directory, files.shown()
    jobs = [stages.Named(of, number, shown) for number in numbers]
    num_workers = min(workers or engines.num_cores(), len(jobs))
    if num_workers > 1:
        with contextlib.closing(engines.make("local", num_workers)) as engine:
            for result in engine.map(stages.run_named, jobs):
                handover.leave(result)
        return
    for job in jobs:
        handover.leave(stages.run_named(job))


def _merge(plan: passes.Plan, place: str) -> str:
    """Completes the schema from what was counted."""
    target = storage.writing(_of_merge(place))
    with directories.whole(target, "merges", "--stage=merge") as new:
        slots = passes.learn(_Left(plan, place), plan, new)
        files.write_scratch(new / _SLOTS, [slots._replace(vocabularies={})])
    storage.publish(target)
    return f"--stage=merge: {len(slots.vocabularies)} vocabularies are made"


def _merged(place: str) -> passes.Slots:
    """What `_merge` left."""
    path = storage.reading(_of_merge(place)) / _SLOTS
    if not path.exists():
        what = "nothing was merged for this configuration, these files, base and versions"
        raise UserError(f"--stage=merge: {what}; run it first")
    (slots,) = files.read_scratch(path)
    return slots


def _publish(config: ConfigDict, plan: passes.Plan, place: str) -> counts_lib.Report | str:
    """Puts the shards in their place, and removes what the stages have left."""
    report: counts_lib.Report | str = f"--stage=publish: the shards are in {config.data.dir}"
    mark = handover.at(place) / _PUBLISHED
    if not _is_published(config, mark):
        report = preparation.publish(config, lambda new: _fill(plan, place, new))
        files.make_directory(mark.parent)
        files.write_scratch(mark, [_identity(config)])
        handover.leave(mark)
    handover.clear(_above(config.data.dir), last=mark.name)
    return report


def _is_published(config: ConfigDict, mark: Path) -> bool:
    """Whether a command before has put the shards in their place, which are there still."""
    if mark.name not in handover.names(mark.parent):
        return False
    handover.take(mark)
    (identity,) = files.read_scratch(mark)
    return identity == _identity(config)


def _identity(config: ConfigDict) -> str:
    """The identity of the shards that are there; empty if there are none."""
    directory = storage.reading(config.data.dir)
    is_there = (directory / "schema.json").exists()
    return schema_lib.load(directory).identity if is_there else ""


def _fill(plan: passes.Plan, place: str, directory: Path) -> counts_lib.Report:
    """Fills the directory of the shards."""
    slots, left = _merged(place), _Left(plan, place)
    left.check("encode")
    merged = storage.reading(_of_merge(place))
    for name in ("vocabulary", "rare"):
        if (merged / name).exists():
            directories.copy(merged / name, directory / name)
    return passes.finish(left, plan, slots, directory)


class _Left(stages.Runner):
    """Reads what the shards of a stage have left."""

    def __init__(self, plan: passes.Plan, place: str):
        self._plan, self._root = plan, handover.at(place)
        super().__init__(None, self._root, progress=False)

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
        missing, there = {}, handover.names(self._root)
        for directory in sorted({d for d, _, _ in (n.partition("/") for n in there)}):
            if not re.fullmatch(rf"{name}-\d+", directory):
                continue
            count = int(directory.removeprefix(f"{name}-"))
            stage, done = None, [False] * count
            if f"{directory}/{stages.STAGE}" in there:
                stage = stages.read_stage(self._root / directory)
                found = (f"{directory}/{stages.name_of(i)}" for i in range(len(stage.jobs)))
                done = [result in there for result in found]
            if all(done):
                assert stage
                return self._root / directory, dataclasses.replace(stage, source=self._plan.source)
            left = sorted({i % count + 1 for i, is_done in enumerate(done) if not is_done})
            missing[count] = left

        if not missing:
            what = "no shard was run for this configuration, these files, base and versions"
            raise UserError(f"--stage={name}: {what}; run them first")
        count, left = min(missing.items(), key=lambda of: len(of[1]))
        which = ", ".join(map(str, left[:8])) + (", ..." if len(left) > 8 else "")
        what = f"{len(left)} of {count} shards are not done ({which})"
        raise UserError(f"--stage={name}: {what}; run --stage={name} --shard={left[0]}/{count}")
