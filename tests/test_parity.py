"""The baselines against the public PyTorch implementation: same weights and inputs, same logits to 1e-5.

tests/golden/*.json hold its numbers, each with its provenance: inputs, weights, batch statistics (evaluation mode) and
logits. `NETWORKS` says for each model which of its weights is which of ours.
"""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from emofm_jax.data.schema import Schema, Slot
from emofm_jax.models import build as model_lib
from emofm_jax.models import final as final_lib
from tests import model_cases as cases

GOLDEN = Path(__file__).parent / "golden"
DIM, SLOTS = 4, "abcd"


def dense(weights, name):
    """{kernel [in, out], bias} of a linear layer."""
    found = {"kernel": weights[f"{name}.weight"].T}
    if f"{name}.bias" in weights:
        found["bias"] = weights[f"{name}.bias"]
    return found


def head(weights, *names):
    """One logit: layers side by side, their biases added."""
    kernels = [weights[f"{name}.weight"] for name in names]
    return {
        "kernel": np.concatenate(kernels, axis=1).T,
        "bias": sum(weights[f"{name}.bias"] for name in names).reshape(()),
    }


def norm(weights, *names):
    """(parameters, statistics) of batch norms, one a token."""
    stack = lambda part: np.stack([weights[f"{name}.{part}"] for name in names])
    params = {"scale": stack("weight"), "bias": stack("bias")}
    return params, {"mean": stack("running_mean"), "var": stack("running_var")}


def mlp(weights, name, normed=True):
    """(parameters, statistics) of an MLP of hidden layers, each with a batch norm."""
    params, stats = {"tower": {}}, {"tower": {}}
    step = 3 if normed else 2
    numbers = sorted(
        int(key.split(".")[-2]) for key in weights if re.fullmatch(rf"{name}\.\d+\.weight", key)
    )
    for i, number in enumerate(
        n for n in numbers if n % step == 0 and weights[f"{name}.{n}.weight"].shape[0] > 1
    ):
        layer = jax.tree.map(lambda x: x[None], dense(weights, f"{name}.{number}"))
        (params if i == 0 else params["tower"])[f"hidden_{i}"] = layer
        if normed:
            params["tower"][f"norm_{i}"], stats["tower"][f"norm_{i}"] = norm(
                weights, f"{name}.{number + 1}"
            )
    return params, stats


def lr(weights, settings):
    return {"bias": weights["lr_layer.bias"].reshape(())}, {}


def fm(weights, settings):
    return {"bias": weights["fm.lr_layer.bias"].reshape(())}, {}


def deepfm(weights, settings):
    params, stats = mlp(weights, "mlp.mlp")
    out = head(weights, "mlp.mlp.6")
    out["bias"] = out["bias"] + weights["fm.lr_layer.bias"].reshape(())
    return {"mlp": params, "head": out}, {"mlp": stats}


def dcnv2(weights, settings):
    params, stats = {"head": head(weights, "fc")}, {}
    for name in ("stacked", "parallel"):
        if any(key.startswith(f"{name}_dnn") for key in weights):
            params[name], stats[name] = mlp(weights, f"{name}_dnn.mlp")
    for i in range(settings["num_cross_layers"]):
        if settings.get("use_low_rank_mixture"):
            v, c, u = (weights[f"crossnet.{letter}_list.{i}"] for letter in "VCU")
            params[f"v_{i}"] = v.transpose(1, 0, 2).reshape(v.shape[1], -1)
            params[f"c_{i}"], params[f"u_{i}"] = c.transpose(0, 2, 1), u.transpose(0, 2, 1)
            params[f"bias_{i}"] = weights[f"crossnet.bias.{i}"][:, 0]
            gates = [weights[f"crossnet.gating.{k}.weight"] for k in range(settings["num_experts"])]
            params["gate"] = np.concatenate(gates).T
        else:
            params[f"cross_{i}"] = dense(weights, f"crossnet.cross_layers.{i}")
    return params, stats


def edcn(weights, settings):
    params, stats = {"head": head(weights, "fc")}, {}
    for i in range(settings["num_cross_layers"]):
        regulation, bridge = f"regulation_modules.{i}", f"bridge_modules.{i}"
        params[f"regulation_{i}_gates"] = np.stack(
            [weights[f"{regulation}.g1"], weights[f"{regulation}.g2"]]
        )
        name = f"regulation_{i}_norm"
        params[name], stats[name] = norm(weights, f"{regulation}.bn1", f"{regulation}.bn2")
        params[f"deep_{i}"] = mlp(weights, f"dense_layers.{i}.mlp", normed=False)[0]
        del params[f"deep_{i}"]["tower"]
        params[f"cross_{i}"] = {"kernel": weights[f"cross_layers.{i}.weight.weight"].T}
        params[f"cross_{i}_bias"] = weights[f"cross_layers.{i}.bias"]
        if f"{bridge}.concat_pooling.0.weight" in weights:
            params[f"bridge_{i}"] = dense(weights, f"{bridge}.concat_pooling.0")
        if (
            f"{bridge}.attention1.0.weight" in weights
        ):  # it uses its first attention for both streams
            for stream in ("cross", "deep"):
                params[f"bridge_{i}_{stream}_hidden"] = dense(weights, f"{bridge}.attention1.0")
                params[f"bridge_{i}_{stream}_scores"] = dense(weights, f"{bridge}.attention1.2")
    return params, stats


def final(weights, settings):
    params, stats = {}, {}
    if settings.get("use_feature_gating"):
        params["gate_kernel"] = weights["feature_gating.linear.weight"].T
        params["gate_bias"] = weights["feature_gating.linear.bias"]
    for block in ("1", "2"):
        if f"fc{block}.weight" not in weights:
            continue
        params[f"block{block}_head"] = head(weights, f"fc{block}")
        i = 0
        while f"block{block}.layer.{i}.linear.weight" in weights:
            params[f"block{block}_{i}"] = dense(weights, f"block{block}.layer.{i}.linear")
            if settings["batch_norm"]:
                parameters, statistics = norm(weights, f"block{block}.norm.{i}")
                params[f"block{block}_{i}_after"] = {"norm_0": parameters}
                stats[f"block{block}_{i}_after"] = {"norm_0": statistics}
            i += 1
    return params, stats


def finalmlp(weights, settings):
    params, stats = {"head": head(weights, "fusion_module.w_x", "fusion_module.w_y")}, {}
    for i in (1, 2):
        params[f"mlp{i}"], stats[f"mlp{i}"] = mlp(weights, f"mlp{i}.mlp")
        gate = f"fs_module.fs{i}_gate.mlp"
        params[f"gate{i}"] = {
            "hidden_0": jax.tree.map(lambda x: x[None], dense(weights, f"{gate}.0"))
        }
        params[f"gate{i}_out"] = dense(weights, f"{gate}.2")
        if f"fs_module.fs{i}_ctx_bias" in weights:
            params[f"gate{i}_context"] = weights[f"fs_module.fs{i}_ctx_bias"]
    heads = settings["num_heads"]
    last = [settings[f"mlp{i}_hidden_units"][-1] // heads for i in (1, 2)]
    params["bilinear"] = weights["fusion_module.w_xy"].reshape(heads, *last)
    return params, stats


def destine(weights, settings):
    out, stats = head(weights, "attn_fc"), {}
    params = {"out_kernel": out["kernel"], "out_bias": out["bias"]}
    parts = {"query": "W_q", "key": "W_k", "value": "W_v", "unary": "W_unary", "residual": "W_res"}
    for i in range(settings["attention_layers"]):
        for ours, theirs in parts.items():
            name = f"self_attns.{i}.{theirs}"
            if f"{name}.weight" in weights:
                params |= {
                    f"attention_{i}_{ours}_{part}": value
                    for part, value in dense(weights, name).items()
                }
        if not settings["relu_before_att"]:  # without effect there, absent here
            del params[f"attention_{i}_query_bias"], params[f"attention_{i}_key_bias"]
        del params[
            f"attention_{i}_unary_bias"
        ]  # the same for all slots, so the softmax takes it out
    if "W_res.weight" in weights:
        params |= {f"residual_{part}": value for part, value in dense(weights, "W_res").items()}
    if settings["use_wide"]:
        params["out_bias"] = params["out_bias"] + weights["lr.bias"].reshape(())
    if settings.get("dnn_hidden_units"):
        params["mlp"], stats["mlp"] = mlp(weights, "dnn.mlp")
        params["deep_head"] = head(weights, "dnn.mlp.6")
    return params, stats


NETWORKS = {f.__name__: f for f in (lr, fm, deepfm, dcnv2, edcn, final, finalmlp, destine)}
BRIDGES = {
    "hadamard_product": "hadamard",
    "pointwise_addition": "add",
    "concatenation": "concat",
    "attention_pooling": "attention",
}


def options_of(name, settings):
    """Our options for its settings."""
    norm = "batch" if settings.get("batch_norm", settings.get("mlp1_batch_norm")) else "none"
    options = cases.options_of(name, embedding_dim=DIM, norm=norm)
    hidden = [settings[k] for k in settings if k.endswith("hidden_units") and settings[k]]
    if name in ("deepfm", "dcnv2", "destine") and hidden:
        options["hidden"] = tuple(hidden[0])
    if name == "dcnv2":
        structures = {"crossnet_only": "cross"}
        options["dcnv2"] |= dict(
            structure=structures.get(settings["model_structure"], settings["model_structure"]),
            num_layers=settings["num_cross_layers"],
            low_rank=settings["low_rank"] if settings.get("use_low_rank_mixture") else 0,
            num_experts=settings.get("num_experts", 1),
        )
    if name == "edcn":
        options["edcn"] |= dict(
            num_layers=settings["num_cross_layers"],
            bridge=BRIDGES[settings["bridge_type"]],
            temperature=float(settings["temperature"]),
            residual=False,  # as there
        )
    if name == "final":
        options["final"] |= dict(
            block1=tuple(settings["block1_hidden_units"]),
            block2=tuple(settings["block2_hidden_units"]) if settings["block_type"] == "2B" else (),
            residual=settings["residual_type"],
            gate=settings.get("use_feature_gating", False),
        )
        options["activation"] = "relu" if settings.get("block1_hidden_activations") else "none"
    if name == "finalmlp":
        options["finalmlp"] |= dict(
            mlp1=tuple(settings["mlp1_hidden_units"]),
            mlp2=tuple(settings["mlp2_hidden_units"]),
            num_heads=settings["num_heads"],
            gate_hidden=tuple(settings["fs_hidden_units"]),
            context1=tuple(settings["fs1_context"]),
            context2=tuple(settings["fs2_context"]),
        )
    if name == "destine":
        options["destine"] |= dict(
            num_layers=settings["attention_layers"],
            d_att=settings["attention_dim"],
            num_heads=settings["num_heads"],
            residual=settings["residual_mode"] or "none",
            scale=settings["use_scale"],
            relu=settings["relu_before_att"],
            wide=settings["use_wide"],
            deep=bool(settings.get("dnn_hidden_units")),
        )
    return options


def inputs_of(name, golden, options, width):
    """e f32[B, S, width]: embeddings, FinalMLP's contexts in their slots, first-order weights."""
    first_order = np.array(golden.get("weights_1", []))
    if name == "lr":
        return first_order[..., None]
    e = np.zeros((*np.shape(golden["e"])[:2], width))
    e[..., :DIM] = golden["e"]
    if width > DIM and name == "finalmlp":
        for i, key in enumerate(("context1", "context2")):
            for j, slot in enumerate(options["finalmlp"][key]):
                context = np.array(golden["contexts"][str(i + 1)])[:, j * DIM : (j + 1) * DIM]
                e[:, SLOTS.index(slot), (i + 1) * DIM : (i + 2) * DIM] = context
    elif width > DIM:
        e[..., -1] = first_order
    return e


@pytest.mark.parametrize("case", sorted(path.stem for path in GOLDEN.glob("*.json")))
def test_logits_agree_with_the_public_implementation(case):
    golden = json.loads((GOLDEN / f"{case}.json").read_text())
    name, settings = case.split("_")[0], golden["settings"]
    options = options_of(name, settings)
    schema = Schema("golden", tuple(Slot(slot, "all", rows=6) for slot in SLOTS), ())
    module = model_lib.make_model(schema, options)
    weights = {key: np.array(value, np.float32) for key, value in golden["weights"].items()}
    params, stats = NETWORKS[name](weights, settings)
    variables = {"params": params, "batch_stats": stats} if stats else {"params": params}
    wanted = jax.eval_shape(lambda key: model_lib.init(module, key, schema), jax.random.key(0))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(
        np.shape, wanted
    )  # every weight of ours is theirs
    e = np.float32(inputs_of(name, golden, options, model_lib.table_width(module)))
    logits = jax.jit(lambda v, e: model_lib.predict(module, v, e)["logit"])(variables, e)
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-5, atol=1e-5)


def test_two_blocks_of_final_teach_each_other_as_published():
    golden = json.loads((GOLDEN / "final_2b.json").read_text())
    y1, y2 = np.float32(golden["y1"]), np.float32(golden["y2"])
    np.testing.assert_allclose(final_lib.distill(y1, y2), golden["loss_rows"], rtol=1e-5)
