"""The list of models, and what a model must have.

To add a model: a linen module from e to `losses.Outputs` of one predictor, whose fields are named as those of
`config.model`, of its own section `config.model.NAME`, or of `build._derive`; and one line in `MODELS` (with options of
its own, in `CHECKS` and `UNREAD`). Columns that it reads beside D it declares as `shared_columns` and `own_columns`
(models/typed.py).
"""

from emofm_jax.models import dcnv2, deepfm, destine, dnn, edcn, emofm, final, finalmlp, fm

EMOFM = {
    "wm": emofm.WM,
    "hm": emofm.HM,
    "hmm": emofm.HMM,
}  # typed by nature; the baselines are if `type_aware`
MODELS = EMOFM | {
    "lr": fm.LR,
    "fm": fm.FM,
    "deepfm": deepfm.DeepFM,
    "dnn": dnn.DNN,
    "dcnv2": dcnv2.DCNv2,
    "edcn": edcn.EDCN,
    "final": final.FINAL,
    "finalmlp": finalmlp.FinalMLP,
    "destine": destine.DESTINE,
}
# Of models with options of their own: what these may be, and which of them switch others off.
CHECKS = {
    "dcnv2": dcnv2.check,
    "edcn": edcn.check,
    "final": final.check,
    "finalmlp": finalmlp.check,
    "destine": destine.check,
}
UNREAD = {"dcnv2": dcnv2.unread, "finalmlp": finalmlp.unread, "destine": destine.unread}
