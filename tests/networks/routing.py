"""Small networks that route, pass messages or look up tables: experts, graphs, points, tables."""

# layers and buffers have no type of their own in nn.Module
# mypy: disable-error-code="no-any-return, operator, index, arg-type"

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.case import Case, floats, mlp

# --- experts -------------------------------------------------------------------------------------


class Experts(nn.Module):
    """A router and its experts; how tokens reach them is up to those that derive from it."""

    def __init__(self, width: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(mlp(width, 16, width) for _ in range(experts))


class Top1ByMask(Experts):
    """Each token to its best expert; rows are read and written by a mask."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        rows = x.reshape(-1, x.shape[-1])
        best, which = F.softmax(self.gate(rows), -1).max(-1)
        out = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            chosen = which == i
            out[chosen] = expert(rows[chosen]) * best[chosen, None]
        return out.view_as(x) + x


class Top2ByIndexAdd(Experts):
    """Each token to two experts, whose weights add up to one, as in Mixtral."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, L, C] -> the same, and the scores of the router."""
        n, length, width = x.shape
        rows = x.view(-1, width)
        scores = self.gate(rows)
        weights, chosen = torch.topk(F.softmax(scores, dim=1, dtype=torch.float), 2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        mask = F.one_hot(chosen, num_classes=len(self.experts)).permute(2, 1, 0)
        out = torch.zeros((n * length, width), dtype=x.dtype)
        for i, expert in enumerate(self.experts):
            slot, token = torch.where(mask[i])
            state = rows[None, token].reshape(-1, width)
            out.index_add_(0, token, expert(state) * weights[token, slot, None])
        return out.reshape(n, length, width), scores


class ExpertChoice(Experts):
    """Each expert takes the tokens that it likes best."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        scores = F.softmax(self.gate(x), -1).transpose(1, 2)  # [N, E, L]
        weights, tokens = scores.topk(2, dim=-1)
        out = x
        for i, expert in enumerate(self.experts):
            places = tokens[:, i].unsqueeze(-1).expand(-1, -1, x.shape[-1])
            out = out.scatter_add(1, places, expert(x.gather(1, places)) * weights[:, i, :, None])
        return out


class SwitchWithCapacity(Experts):
    """Top-1 dispatch and combination tensors; a token beyond an expert's capacity passes by."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        probabilities = F.softmax(self.gate(x), -1)
        gate, which = probabilities.max(-1)
        chosen = F.one_hot(which, len(self.experts)).to(x.dtype)
        place = torch.cumsum(chosen, 1) * chosen
        capacity = 3
        kept = chosen * (place <= capacity)
        slots = F.one_hot((place * kept).sum(-1).long(), capacity + 1)[..., 1:].to(x.dtype)
        dispatch = kept.unsqueeze(-1) * slots.unsqueeze(-2)  # [N, L, E, capacity]
        given = torch.einsum("nlec,nld->encd", dispatch, x)
        done = torch.stack([expert(given[i]) for i, expert in enumerate(self.experts)])
        return x + torch.einsum("nlec,encd->nld", dispatch * gate[..., None, None], done)


class SortedByExpert(Experts):
    """Tokens sorted by their expert; one batched product over gathered weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> the same."""
        which = self.gate(x).argmax(-1)
        order = torch.argsort(which, stable=True)
        done = torch.bmm(x[order].unsqueeze(1), self.weight[which[order]]).squeeze(1)
        return done[torch.argsort(order)]


class SharedExpert(Experts):
    """All experts on all tokens, weights that are zero but for the chosen, and a shared expert."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.bias = mlp(8, 16, 8), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> the same."""
        scores = torch.sigmoid(self.gate(x))
        chosen = (scores + self.bias).topk(2, dim=-1).indices
        mask = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        weights = scores * mask
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        done = torch.stack([e(x) for e in self.experts], -2)
        return self.shared(x) + (done * weights.unsqueeze(-1)).sum(-2)


class EarlyExit(nn.Module):
    """Only rows whose first head is unsure go through the second block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(8, 16, 8), mlp(8, 16, 8)
        self.head, self.sure = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, 3]."""
        h = self.first(x)
        early = self.sure(h)
        unsure = early.softmax(-1).amax(-1) < 0.5
        rows = unsure.nonzero(as_tuple=True)[0]
        return early.index_copy(0, rows, self.head(self.second(h.index_select(0, rows))))


# --- graphs --------------------------------------------------------------------------------------


class DenseGcn(nn.Module):
    """Two graph convolutions over a normalised dense adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """[N, V, C], [N, V, V] -> [N, V, 4]."""
        own = adjacency + torch.eye(adjacency.shape[-1])
        root = own.sum(-1).clamp(min=1).rsqrt()
        normal = root.unsqueeze(-1) * own * root.unsqueeze(-2)
        return normal @ self.b(F.relu(normal @ self.a(x)))


class SparseGcn(nn.Module):
    """One graph convolution over edges, degrees counted by scatter_add."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[V, C], [2, E] -> [V, 4]."""
        source, target = edges[0], edges[1]
        ones = torch.ones(edges.size(1), dtype=x.dtype)
        degree = torch.zeros(x.size(0)).scatter_add_(0, target, ones)
        root = degree.pow(-0.5)
        root = root.masked_fill(root == float("inf"), 0.0)
        norm = root[source] * root[target]
        h = self.a(x)
        return self.b(torch.zeros_like(h).index_add(0, target, h[source] * norm[:, None]).relu())


class Sage(nn.Module):
    """Mean of the neighbours beside the node itself, then its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.theirs = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[V, C], [2, E] -> [V, C]."""
        source, target = edges.unbind(0)
        index = target.view(-1, 1).expand(-1, x.size(1))
        given = torch.index_select(x, 0, source)
        total = x.new_zeros(x.size(0), x.size(1)).scatter_add(0, index, given)
        count = x.new_zeros(x.size(0)).scatter_add(
            0, target, torch.ones_like(target, dtype=x.dtype)
        )
        return F.normalize(self.own(x) + self.theirs(total / count.clamp(min=1)[:, None]), dim=-1)


class Gat(nn.Module):
    """Attention over edges: a softmax over those that end in one node, by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(1, 2, 4)) for _ in range(2))
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[V, C], [2, E] -> [V, 4]."""
        h = self.fc(x).view(-1, 2, 4)
        score = (h * self.source).sum(-1)[edges[0]] + (h * self.target).sum(-1)[edges[1]]
        score = F.leaky_relu(score, 0.2)
        index = edges[1].unsqueeze(-1).expand_as(score)
        peak = torch.full((x.size(0), 2), -1e9).scatter_reduce(0, index, score, "amax")
        weight = (score - peak[edges[1]]).exp()
        total = torch.zeros(x.size(0), 2).scatter_add(0, index, weight)
        weight = weight / (total[edges[1]] + 1e-16)
        mixed = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]] * weight.unsqueeze(-1))
        return self.out(F.elu(mixed.flatten(1)))


class Gin(nn.Module):
    """Sums of neighbours, two layers, and the sum over each graph of a batch of graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(2))
        self.layers = nn.ModuleList(mlp(8, 16, 8) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        """[V, C], [2, E], [V] -> [3 graphs, 3]."""
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            near = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
            x = F.relu(norm(layer((1 + self.eps[i]) * x + near)))
        return self.head(torch.zeros(3, x.size(1)).index_add_(0, graph, x))


class EdgeMessages(nn.Module):
    """Messages made of both ends and the edge's features; the largest one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = mlp(19, 16, 8), nn.GRUCell(8, 8)

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        """[V, C], [E, 2], [E, 3] -> [V, C]."""
        source, target = edges[:, 0], edges[:, 1]
        m = self.message(torch.cat([x[source], x[target], features], -1))
        index = target[:, None].expand_as(m)
        best = torch.zeros_like(x).scatter_reduce(0, index, m, "amax", include_self=False)
        return self.update(best, x)


class PointNet(nn.Module):
    """A transform of the points, a network for each of them, and their largest features."""

    def __init__(self) -> None:
        super().__init__()
        self.t1, self.t2 = nn.Conv1d(3, 8, 1), nn.Linear(8, 9)
        self.c1, self.n1 = nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16)
        self.c2, self.n2 = nn.Conv1d(16, 32, 1), nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, P] -> log probabilities [N, 4]."""
        t = torch.max(F.relu(self.t1(x)), 2)[0]
        eye = torch.eye(3).flatten().repeat(x.size(0), 1)
        t = (self.t2(t) + eye).view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), t).transpose(2, 1)
        x = F.relu(self.n1(self.c1(x)))
        x = torch.max(self.n2(self.c2(x)), 2, keepdim=True)[0].view(-1, 32)
        return F.log_softmax(self.head(x), -1)


class Dgcnn(nn.Module):
    """Edge convolutions over the nearest neighbours in the space of features."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
        self.b = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.LeakyReLU(0.2))
        self.head = nn.Linear(32, 4)

    @staticmethod
    def edges(x: Tensor, k: int) -> Tensor:
        n, c, points = x.size()
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        square = torch.sum(x**2, dim=1, keepdim=True)
        near = (-square - inner - square.transpose(2, 1)).topk(k=k, dim=-1)[1]
        near = (near + torch.arange(0, n).view(-1, 1, 1) * points).view(-1)
        rows = x.transpose(2, 1).contiguous()
        found = rows.view(n * points, -1)[near, :].view(n, points, k, c)
        own = rows.view(n, points, 1, c).repeat(1, 1, k, 1)
        return torch.cat((found - own, own), dim=3).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, P] -> [N, 4]."""
        a = self.a(self.edges(x, 3)).max(dim=-1)[0]
        b = self.b(self.edges(a, 3)).max(dim=-1)[0]
        h = torch.cat([a, b], 1)
        pooled = [F.adaptive_max_pool1d(h, 1).flatten(1), F.adaptive_avg_pool1d(h, 1).flatten(1)]
        return self.head(torch.cat(pooled, 1))


class SetTransformer(nn.Module):
    """Induced attention over a set, pooled by seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(1, 3, 8))
        self.seed = nn.Parameter(torch.randn(1, 1, 8))
        self.into, self.out, self.pool = (
            nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(3)
        )
        self.fc, self.head = mlp(8, 16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, 3]."""
        n = x.size(0)
        few = self.into(self.points.repeat(n, 1, 1), x, x, need_weights=False)[0]
        x = x + self.out(x, few, few)[0]
        x = x + self.fc(x)
        return self.head(self.pool(self.seed.expand(n, -1, -1), x, x)[0].squeeze(1))


# --- tables --------------------------------------------------------------------------------------


class Dlrm(nn.Module):
    """Bags of words and numbers, and the products of every two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(3))
        self.bottom, self.top = mlp(5, 16, 8), mlp(14, 16, 1)

    def forward(self, dense: Tensor, words: Tensor) -> Tensor:
        """[N, 5], [N, 3, 4] -> [N, 1]."""
        x = self.bottom(dense)
        all_ = torch.stack([x, *(bag(words[:, i]) for i, bag in enumerate(self.bags))], 1)
        products = torch.bmm(all_, all_.transpose(1, 2))
        i, j = torch.tril_indices(4, 4, offset=-1)
        return torch.sigmoid(self.top(torch.cat([x, products[:, i, j]], 1)))


class BagsWithOffsets(nn.Module):
    """Flat words and where each bag starts."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.fc = nn.EmbeddingBag(20, 8, mode="mean"), nn.Linear(8, 2)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        """[W], [N] -> [N, 2]."""
        return self.fc(self.bag(words, offsets))


class WideAndDeep(nn.Module):
    """Crossed columns with one weight each, beside embeddings and a network."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Embedding(100, 1)
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(2))
        self.deep = mlp(11, 16, 1)

    def forward(self, columns: Tensor, numbers: Tensor) -> Tensor:
        """[N, 2], [N, 3] -> [N]."""
        crossed = columns[:, 0] * 10 + columns[:, 1]
        found = [t(columns[:, i]) for i, t in enumerate(self.tables)]
        deep = self.deep(torch.cat([*found, numbers], -1))
        return (self.wide(crossed) + deep).squeeze(-1).sigmoid()


class TabTransformer(nn.Module):
    """Columns with offsets into one table, attention over them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.register_buffer("offsets", torch.tensor([0, 10, 20]))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(4), mlp(28, 16, 2)

    def forward(self, columns: Tensor, numbers: Tensor) -> Tensor:
        """[N, 3], [N, 4] -> [N, 2]."""
        x = self.body(self.table(columns + self.offsets))
        return self.head(torch.cat([x.flatten(1), self.norm(numbers)], -1))


class Ncf(nn.Module):
    """Products of factors beside a network over them."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(12, 8), nn.Embedding(15, 8)
        self.user2, self.item2 = nn.Embedding(12, 8), nn.Embedding(15, 8)
        self.fc, self.out = mlp(16, 16, 8), nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """[N], [N] -> [N]."""
        factors = self.user(user) * self.item(item)
        deep = self.fc(torch.cat([self.user2(user), self.item2(item)], -1))
        return torch.sigmoid(self.out(torch.cat([factors, deep], -1))).view(-1)


class Vae(nn.Module):
    """The mean of the code in evaluation, noise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.spread = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 12] -> the same, mean and log of the variance."""
        h = torch.relu(self.encoder(x))
        mean, spread = self.mean(h), self.spread(h)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * spread)
        return self.decoder(z), mean, spread


class Coupling(nn.Module):
    """Affine couplings over halves, reversed between them, with the log determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(4, 16, 8) for _ in range(2))
        self.log_scale, self.shift = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 8] -> the same, [N]."""
        x = (x + self.shift) * self.log_scale.exp()
        logdet = self.log_scale.sum().expand(x.size(0))
        for net in self.nets:
            a, b = x.chunk(2, -1)
            s, t = net(a).chunk(2, -1)
            s = torch.tanh(s)
            x = torch.cat([a, b * torch.exp(s) + t], -1).flip(-1)
            logdet = logdet + s.sum(-1)
        return x, logdet


class Nerf(nn.Module):
    """Sines and cosines of a position, a skip connection, colours composed along a ray."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bands", 2.0 ** torch.arange(3))
        self.a, self.b, self.out = nn.Linear(21, 16), nn.Linear(37, 16), nn.Linear(16, 4)

    def forward(self, points: Tensor) -> Tensor:
        """[N rays, S, 3] -> [N, 3]."""
        angles = points[..., None, :] * self.bands[:, None]
        code = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
        code = torch.cat([points, code], -1)
        h = F.relu(self.a(code))
        h = F.relu(self.b(torch.cat([h, code], -1)))
        out = self.out(h)
        alpha = 1 - torch.exp(-F.relu(out[..., 3]) * 0.1)
        past = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], -1), -1)
        return ((alpha * past[:, :-1])[..., None] * torch.sigmoid(out[..., :3])).sum(1)


class HyperNetwork(nn.Module):
    """Weights of a layer, for each row, made by another one."""

    def __init__(self) -> None:
        super().__init__()
        self.producer, self.first = nn.Linear(5, 8 * 4 + 4), nn.Linear(6, 8)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """[N, L, 6], [N, 5] -> [N, L, 4]."""
        made = self.producer(task)
        weight, bias = made.split([32, 4], -1)
        return torch.baddbmm(bias.unsqueeze(1), F.relu(self.first(x)), weight.view(-1, 8, 4))


class Film(nn.Module):
    """Features scaled and shifted by a class that is given by number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8, affine=False)
        self.table, self.out = nn.Embedding(5, 16), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """[N, 3, L], [N] -> [N, 2, L]."""
        scale, shift = self.table(label)[..., None].chunk(2, 1)
        return self.out(F.relu(torch.addcmul(shift, self.norm(self.conv(x)), 1 + scale)))


# --- the table -----------------------------------------------------------------------------------


def ints(high: int, *shape: int) -> Tensor:
    """Whole numbers below `high`."""
    return torch.randint(0, high, shape)


def adjacency(n: int, vertices: int = 6) -> Tensor:
    """Symmetric, of zeros and ones."""
    upper = torch.triu((torch.rand(n, vertices, vertices) < 0.4).float(), 1)
    return upper + upper.transpose(1, 2)


def lists(n: int) -> tuple[Any, ...]:
    """Twelve words in `n` bags, and where the bags start."""
    starts = torch.randint(0, 12, (n,)).sort().values
    starts[0] = 0
    return ints(20, 12), starts


CASES: dict[str, Case] = {
    "experts, one each, by mask": Case(Top1ByMask, floats(6, 8), choosing=True),
    "experts, two each, by index_add": Case(Top2ByIndexAdd, floats(5, 8), choosing=True),
    "experts that choose": Case(ExpertChoice, floats(6, 8), choosing=True),
    "switch with capacity": Case(SwitchWithCapacity, floats(6, 8), choosing=True),
    "sorted by expert": Case(SortedByExpert, floats(8), sizes=(16, 9, 3), choosing=True),
    "a shared expert": Case(SharedExpert, floats(6, 8), choosing=True),
    "early exit": Case(EarlyExit, floats(8), sizes=(16, 5, 40), choosing=True),
    "gcn, dense": Case(DenseGcn, lambda n: (torch.randn(n, 6, 8), adjacency(n))),
    "gcn, sparse": Case(SparseGcn, lambda n: (torch.randn(n, 8), ints(n, 2, 20)),
                        sizes=(10, 6, 15)),
    "graph sage": Case(Sage, lambda n: (torch.randn(n, 8), ints(n, 2, 20)), sizes=(10, 6, 15)),
    "graph attention": Case(Gat, lambda n: (torch.randn(n, 8), ints(n, 2, 20)), sizes=(10, 6, 15)),
    "graph isomorphism": Case(
        Gin, lambda n: (torch.randn(n, 8), ints(n, 2, 20), ints(3, n)), sizes=(10, 6, 15)),
    "messages over edges": Case(
        EdgeMessages, lambda n: (torch.randn(n, 8), ints(n, 20, 2), torch.randn(20, 3)),
        sizes=(10, 6, 15)),
    "point net": Case(PointNet, floats(3, 12)),
    "dgcnn": Case(Dgcnn, floats(3, 10), choosing=True),
    "set transformer": Case(SetTransformer, floats(6, 8)),
    "dlrm": Case(Dlrm, lambda n: (torch.randn(n, 5), ints(20, n, 3, 4))),
    "bags with offsets": Case(BagsWithOffsets, lists),
    "wide and deep": Case(WideAndDeep, lambda n: (ints(10, n, 2), torch.randn(n, 3))),
    "tab transformer": Case(TabTransformer, lambda n: (ints(10, n, 3), torch.randn(n, 4))),
    "neural collaborative filtering": Case(Ncf, lambda n: (ints(12, n), ints(15, n)),
                                           sizes=(8, 3, 11)),
    "variational autoencoder": Case(Vae, lambda n: (torch.rand(n, 12),)),
    "coupling flow": Case(Coupling, floats(8)),
    "nerf": Case(Nerf, floats(5, 3)),
    "hyper network": Case(HyperNetwork, lambda n: (torch.randn(n, 7, 6), torch.randn(n, 5))),
    "film": Case(Film, lambda n: (torch.randn(n, 3, 9), ints(5, n))),
}  # fmt: skip
