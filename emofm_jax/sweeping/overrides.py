"""Overrides of a config: {dotted field: value}; that of a section overrides its fields."""

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax import options as options_lib
from emofm_jax.errors import UserError


def apply(config: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """A copy of the config with fields set, validated.

    Raises:
      UserError: beginning with `where`: an unknown field, a value of another type or out of range.
    """
    config = put(config, overrides, where)
    try:
        config_lib.validate(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


def put(config: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """As `apply`, but any value of the field's type will do."""
    config = copy.deepcopy(config)
    for path, value in leaves(overrides):
        *parents, field = options_lib.parts(path)
        section = config
        for part in parents:
            section = section[part] if isinstance(section, ConfigDict) and part in section else None

        if not isinstance(section, ConfigDict) or field not in section:
            near = difflib.get_close_matches(path, list(options_lib.flatten(config)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--helpfull lists every option"
            raise UserError(f"{where}: there is no field {path!r}; {hint}")

        try:
            section[field] = value
        except TypeError:
            kind = type(section[field]).__name__
            wrong = f"{where}: {path} = {value!r} is no {kind}"
            raise UserError(f"{wrong}; give a value of the field's type") from None
    return config


def leaves(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (dotted field, value) of overrides and of the sections among them."""
    for path, value in overrides.items():
        if isinstance(value, Mapping) and path != "prepare.slots":
            yield from leaves({f"{path}.{key}": inner for key, inner in value.items()})
        else:
            yield path, value
