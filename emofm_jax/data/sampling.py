"""Training rows without a click, left out at random (`negative_keep_rate`).

Weights undo it in figures and starts; `train.sampling_correction` says what does in the loss.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from emofm_jax.data import recipe as recipe_lib


def thin(
    recipe: Mapping,
    file_index: int,
    lines: np.ndarray,
    table: pa.Table,
    is_train: np.ndarray | bool = True,
) -> tuple[np.ndarray, pa.Table]:
    """Leaves rows out; those without a click that stay weigh 1 / negative_keep_rate as much.

    Args:
      recipe: whose seed decides.
      file_index: of the rows' file among the split's files.
      lines: i64[n], of the rows in it.
      table: n encoded rows with a weight.
      is_train: bool[n], which of them are training rows; the others stay as they are.

    Returns:
      bool[n], which rows stay; and these.
    """
    label = table["label"].to_numpy()
    kept = ~np.asarray(is_train) | recipe_lib.sampled(recipe, file_index, lines, label)
    more = np.float32(1 / recipe_lib.later(recipe, "negative_keep_rate"))
    weight = table["weight"].to_numpy() * np.where(is_train & (label == 0), more, np.float32(1))
    place = table.column_names.index("weight")
    table = table.set_column(place, table.schema.field("weight"), pa.array(weight, pa.float32()))
    return kept, table.filter(pa.array(kept))
