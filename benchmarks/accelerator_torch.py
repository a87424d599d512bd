"""The steps and scorers of accelerator.py in PyTorch, on its device, of the same weights and batches."""

import accelerator
import jax
import numpy as np
import scorer_torch
import torch
from torch import nn
from torch.nn import functional as F

VERSION = torch.__version__
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step(name: str, rows: int, batch_size: int, compiled: bool) -> dict:
    """Milliseconds of an Adam step: gradients of the table dense at 1e5 rows, sparse above.

    Products of f32 are TF32's, as JAX has them by default.
    """
    is_sparse = rows > 10**5
    where = {"model": name, "rows": rows, "batch": batch_size}
    where |= {"gradients": "sparse" if is_sparse else "dense", "compiled": compiled}
    torch.set_float32_matmul_precision("high")
    try:
        schema, host = accelerator.make_batches(name, rows, batch_size)
        width = accelerator.WIDTH
        table = nn.Embedding(rows, width, sparse=is_sparse, device=DEVICE)
        network = (_hmm if name == "hmm" else _dnn)(schema).to(DEVICE)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        forward = torch.compile(network) if compiled else network
        of_table = torch.optim.SparseAdam if is_sparse else torch.optim.Adam
        optimizers = [of_table(table.parameters()), torch.optim.Adam(network.parameters())]
        arrays = [
            (b.ids[0].astype(np.int64), b.label[0], b.ftype[0].astype(np.int64)) for b in host
        ]
        batches = [[torch.from_numpy(x).to(DEVICE) for x in batch] for batch in arrays]
        turn = iter(range(10**9))

        def call() -> None:
            ids, label, ftype = batches[next(turn) % len(batches)]
            for optimizer in optimizers:
                optimizer.zero_grad()
            _loss(name, forward(table(ids)), label, ftype).backward()
            for optimizer in optimizers:
                optimizer.step()

        def run() -> None:  # one after the other: nothing is awaited in between
            for _ in range(20):
                call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        seconds = accelerator.median_seconds(run, 3, warm=1) / 20
    except Exception as error:  # the other cases go on
        return where | {"error": f"{type(error).__name__}: {error}"[:300]}
    return where | {"ms": 1e3 * seconds, "rows_per_s": batch_size / seconds}


def _loss(name: str, found: dict, label: torch.Tensor, ftype: torch.Tensor) -> torch.Tensor:
    if name == "dnn":
        return F.binary_cross_entropy_with_logits(found["logit"], label)
    p = found["p_given_type"].gather(1, ftype[:, None])[:, 0]
    of_type = F.nll_loss(found["p_type"].log(), ftype)
    return F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), label) + of_type


class _MLP(nn.Module):
    """e -> logit: the MLP that is measured, with PyTorch's own start."""

    def __init__(self):
        super().__init__()
        widths, layers = [accelerator.SLOTS * accelerator.WIDTH, *accelerator.HIDDEN], []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, e):
        return {"logit": self.layers(e.flatten(1))[:, 0]}


def _dnn(schema) -> nn.Module:
    return _MLP()


def _hmm(schema) -> nn.Module:
    """From our weights at the start."""
    from emofm_jax.models import build as model_lib

    module = model_lib.make_model(schema, accelerator.model_options("hmm"))
    variables = model_lib.init(module, jax.random.key(0), schema)
    params = scorer_torch._as_numpy(jax.device_get({"network": variables["params"]}))
    return _owning(scorer_torch.HMM(params, schema, "fused"))


def _owning(network: nn.Module) -> nn.Module:
    """A copy of each parameter: several are views of one array."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    return network


def scorer(name: str, made, features: dict):
    """A function of nothing that scores features of the host, eager, by the scorer's weights."""
    params = scorer_torch._as_numpy(jax.device_get(made.params))
    schema = made.schema
    is_hmm = name == "hmm"
    network = scorer_torch.HMM(params, schema, "fused") if is_hmm else scorer_torch.DNN(params)
    model = scorer_torch.Scorer(params, schema, network).eval().to(DEVICE)
    inputs = {slot: torch.from_numpy(np.asarray(x)) for slot, x in features.items()}

    @torch.inference_mode()
    def call():
        return model(torch.stack(list(inputs.values()), 1).to(DEVICE), None)["p"].cpu()

    return call
