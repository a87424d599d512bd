"""HMM and DNN in PyTorch, from our weights, for `benchmarks/scorer.py`: written from docs/model.md, inference only.

Weights are laid out once as a product wants them, the types' embeddings are added to the biases, the first layers of
all predictors are one product, tokens are stacked and multiplied in batches. Attention comes in two forms: torch's
fused one, and multiplications and sums. (One product a token, unrolled, was slower or equal.)
"""

import numpy as np
import torch
import torch._inductor.config
from torch import nn
from torch.nn import functional as F

ATTENTION = {"hmm": ("fused", "spelt out"), "dnn": ("",)}


def calls(name: str, scorer, features: dict[str, np.ndarray]) -> dict:
    """{"eager ..", "compiled ..": a function of nothing that scores the features}."""
    torch._inductor.config.freezing = True  # weights become constants, laid out for the processor
    torch._dynamo.config.recompile_limit = 64
    inputs = {slot: torch.from_numpy(x) for slot, x in features.items()}
    params, found = _as_numpy(scorer.params), {}
    for attention in ATTENTION[name]:
        make = lambda attention=attention: Scorer(
            params,
            scorer.schema,
            HMM(params, scorer.schema, attention) if attention else DNN(params),
        )
        compiled = torch.compile(make().eval(), dynamic=False)
        found[f"eager {attention}".strip()] = _call(_bare(make().eval()).forward, inputs)
        found[f"compiled {attention}".strip()] = _call(compiled, inputs)
    return found


def _call(forward, inputs):
    @torch.inference_mode()
    def call():
        return forward(*pack(inputs))

    kinds = (
        [name for name, x in inputs.items() if x.ndim == 1],
        [name for name, x in inputs.items() if x.ndim == 2],
    )

    def pack(inputs):
        """Outside of the compiled part, where each array more would cost a guard: [B, slots], [B, bags, L] or None."""
        single, bags = kinds
        return torch.stack([inputs[k] for k in single], 1), torch.stack(
            [inputs[k] for k in bags], 1
        ) if bags else None

    return call


def _bare(model):
    """Weights as plain attributes, which eager calls find without nn.Module's look-up."""
    for part in model.modules():
        part.__dict__ |= part._parameters | part._buffers | part._modules
    return model


def _as_numpy(tree):
    return (
        {k: _as_numpy(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)
    )


class Module(nn.Module):
    """Keeps arrays as parameters."""

    def keep(self, **arrays):
        for name, x in arrays.items():
            self.register_parameter(
                name, nn.Parameter(torch.tensor(np.ascontiguousarray(x)), requires_grad=False)
            )


class Scorer(Module):
    """Ids [B, slots] and bags [B, bags, L] or None -> scores: single ids by one look-up, bags by one pooled look-up."""

    def __init__(self, params, schema, network):
        super().__init__()
        self.network, self.num_rows = network, schema.num_rows
        is_bag = np.array([slot.kind == "multi" for slot in schema.slots])
        bags = np.flatnonzero(is_bag)
        assert np.ptp(bags) == len(bags) - 1 if len(bags) else True  # they stand together
        self.first_bag = int(bags[0]) if len(bags) else len(is_bag)
        padding = np.zeros_like(params["embedding"][:1])
        self.keep(table=np.concatenate([params["embedding"], padding]))
        self.register_buffer(
            "single_offsets", torch.tensor(schema.offsets[~is_bag], dtype=torch.int32)
        )
        self.register_buffer(
            "bag_offsets", torch.tensor(schema.offsets[is_bag], dtype=torch.int32)[:, None]
        )

    def forward(self, single, bags):
        e = F.embedding(single + self.single_offsets, self.table)
        if bags is not None:
            batch, num_bags, length = bags.shape
            ids = torch.where(bags < 0, self.num_rows, bags + self.bag_offsets).view(-1, length)
            pooled = F.embedding_bag(ids, self.table, mode="mean", padding_idx=self.num_rows).view(
                batch, num_bags, -1
            )
            e = torch.cat([e[:, : self.first_bag], pooled, e[:, self.first_bag :]], 1)
        return self.network.forward(e)


class MLP(Module):
    """Dense layers with ReLU after each."""

    def __init__(self, params):
        super().__init__()
        layers = [
            params["hidden_0"],
            *(params["tower"][f"hidden_{i + 1}"] for i in range(len(params["tower"]))),
        ]
        self.layers = [(f"kernel_{i}", f"bias_{i}") for i in range(len(layers))]
        for (kernel, bias), layer in zip(self.layers, layers):
            self.keep(**{kernel: layer["kernel"][0].T, bias: layer["bias"][0]})

    def forward(self, x):
        for kernel, bias in self.layers:
            x = F.relu(F.linear(x, getattr(self, kernel), getattr(self, bias)))
        return x


class DNN(Module):
    """e -> p, logit."""

    def __init__(self, params):
        super().__init__()
        network = params["network"]
        self.mlp = MLP(network["mlp"])
        self.keep(kernel=network["head"]["kernel"].T, bias=network["head"]["bias"].reshape(1))

    def forward(self, e):
        logit = F.linear(self.mlp.forward(e.flatten(1)), self.kernel, self.bias)[:, 0]
        return {"p": torch.sigmoid(logit), "logit": logit}


class Mixer(Module):
    """Cross-attention of n stacked tokens [n, B, d]."""

    def __init__(self, params, attention, num_heads=4):
        super().__init__()
        self.attention, self.num_heads = attention, num_heads
        self.keep(kernel=params["query_key_value"], out=params["out"])
        n = len(params["out"])
        self.register_buffer(
            "others", torch.zeros(n, n).masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
        )

    def forward(self, u):
        n, batch, _ = u.shape
        width = self.out.shape[1] // self.num_heads
        projected = torch.bmm(u, self.kernel).view(n, batch, 3, self.num_heads, width)
        if self.attention == "fused":
            q, k, v = projected.permute(2, 1, 3, 0, 4).unbind(0)  # [B, H, n, width]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.others).permute(
                2, 0, 1, 3
            )
        else:
            q, k, v = projected.unbind(2)  # [n, B, H, width]
            scores = (q[:, None] * k[None]).sum(-1) / width**0.5 + self.others[:, :, None, None]
            mixed = (scores.softmax(1)[..., None] * v[None]).sum(1)
        return torch.baddbmm(u, mixed.reshape(n, batch, -1), self.out)


class HMM(Module):
    """e -> p, logit, p_type, p_given_type; groups of one size."""

    def __init__(self, params, schema, attention):
        super().__init__()
        network, auxiliary = params["network"]["network"], params["network"]["auxiliary"]
        group, stage1, stage2, types = (
            network[k] for k in ("group_dense", "stage1", "stage2", "type_dense")
        )
        self.num_groups, self.num_types = len(schema.group_sizes), len(types["type_embedding"])
        width = types["kernel"].shape[1] - types["type_embedding"].shape[1]
        bias = types["bias"] + np.einsum(
            "td,tdf->tf", types["type_embedding"], types["kernel"][:, width:]
        )
        self.keep(
            group_kernel=group["kernel"].reshape(self.num_groups, -1, group["kernel"].shape[1]),
            group_bias=group["bias"][:, None],
            type_kernel=np.concatenate(list(types["kernel"][:, :width]), axis=1).T,
            type_bias=bias.ravel(),
            hidden_kernel=stage2["hidden_1"]["kernel"],
            hidden_bias=stage2["hidden_1"]["bias"][:, None],
            head_kernel=network["head"]["kernel"],
            head_bias=network["head"]["bias"][:, None, None],
            auxiliary_kernel=auxiliary["head"]["kernel"].T,
            auxiliary_bias=auxiliary["head"]["bias"],
        )
        self.mixer, self.auxiliary = Mixer(stage1["mixer_0"], attention), MLP(auxiliary["mlp"])
        self.mixer_0, self.mixer_1 = (Mixer(stage2[f"mixer_{i}"], attention) for i in (0, 1))

    def forward(self, e):
        batch = e.shape[0]
        x = e.view(batch, self.num_groups, -1).transpose(0, 1)  # [G, B, slots of a group * D]
        x = self.mixer.forward(F.relu(torch.baddbmm(self.group_bias, x, self.group_kernel)))
        x = F.linear(x.transpose(0, 1).reshape(batch, -1), self.type_kernel, self.type_bias)
        x = x.view(batch, self.num_types, -1).transpose(0, 1)  # [T, B, width]
        x = self.mixer_0.forward(F.relu(x))
        x = self.mixer_1.forward(F.relu(torch.baddbmm(self.hidden_bias, x, self.hidden_kernel)))
        logits = torch.baddbmm(self.head_bias, x, self.head_kernel)[..., 0].T  # [B, T]
        type_logits = F.linear(
            self.auxiliary.forward(e.flatten(1)), self.auxiliary_kernel, self.auxiliary_bias
        )
        log_type = type_logits.log_softmax(1)
        log_p = torch.logsumexp(log_type + F.logsigmoid(logits), 1)
        logit = log_p - torch.logsumexp(log_type + F.logsigmoid(-logits), 1)
        return {
            "p": log_p.exp(),
            "logit": logit,
            "p_type": log_type.exp(),
            "p_given_type": torch.sigmoid(logits),
        }
