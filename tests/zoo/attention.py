"""Architectures of the zoo with attention, and other networks over sequences."""

import math

import torch
from architecture import Zoo, image, sequence, tokens
from torch import Tensor, nn
from torch.nn import functional as F

ZOO = Zoo()


class RMSNorm(nn.Module):
    """Root mean square norm written by hand, as language models do."""

    def __init__(self, n: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(n) + 0.5), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class _FusedAttention(nn.Module):
    """One projection for queries, keys and values, split by a view and a permute (timm)."""

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, n // heads
        self.qkv, self.proj = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class _Mlp(nn.Module):
    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(n, hidden), nn.Linear(hidden, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, n: int, heads: int, attention: type[nn.Module], norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm(n), attention(n, heads), norm(n), _Mlp(n, 2 * n)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@ZOO.add(image(3, 8, 8), groups={"blocks.0.attn:head": 2, "blocks.0.mlp.fc1:out": 16, "blocks.1.attn:head": 2,
                                 "blocks.1.mlp.fc1:out": 16, "patch:out": 8},
         heads=("blocks.0.attn:head", "blocks.1.attn:head"))  # fmt: skip
class ViT(nn.Module):
    """Fused qkv, a class token by cat, x[:, 0] at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.Sequential(_Block(8, 2, _FusedAttention), _Block(8, 2, _FusedAttention))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class _ChunkAttention(nn.Module):
    """Queries, keys and values by split, heads by view (nanoGPT)."""

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.heads, self.n = nn.Linear(n, 3 * n), nn.Linear(n, n), heads, n

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
                   for part in self.c_attn(x).split(self.n, dim=2))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


@ZOO.add(tokens(6, 11), groups={"tok:out": 8, "blocks.0.attn:head": 2, "blocks.0.mlp.fc1:out": 16,
                                "blocks.1.attn:head": 2, "blocks.1.mlp.fc1:out": 16},
         heads=("blocks.0.attn:head", "blocks.1.attn:head"))  # fmt: skip
class TiedGPT(nn.Module):
    """The embedding is the classifier; positions by pos.weight[:t]."""

    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(11, 8), nn.Embedding(9, 8)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList([_Block(8, 2, _ChunkAttention), _Block(8, 2, _ChunkAttention)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.drop(self.tok(idx) + self.pos.weight[: idx.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _HandAttention(nn.Module):
    """Separate projections; matmul, a causal mask from a buffer, softmax."""

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(n, n) for _ in range(4))
        self.heads = heads
        self.register_buffer("mask", torch.full((9, 9), float("-inf")).triu(1), persistent=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores + self.mask[: x.shape[1], : x.shape[1]]
        context = torch.matmul(F.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return self.out(context.view(*context.shape[:2], -1))


@ZOO.add(sequence(6, 8), groups={"1.attn:head": 2, "1.mlp.fc1:out": 16, "0:out": 8}, heads=("1.attn:head",))
def hand_attention() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), _Block(8, 2, _HandAttention, RMSNorm), RMSNorm(8), nn.Linear(8, 4))


class _EinsumAttention(nn.Module):
    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, n = x.shape
        q, k, v = (layer(x).reshape(b, t, self.heads, -1) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(0.5).softmax(dim=-1)
        return self.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, n))


@ZOO.add(sequence(5, 8), groups={"1.attn:head": 4, "1.mlp.fc1:out": 16, "0:out": 8}, heads=("1.attn:head",))
def einsum_attention() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), _Block(8, 4, _EinsumAttention, nn.RMSNorm), nn.RMSNorm(8), nn.Linear(8, 4))


class _SplitAttention(nn.Module):
    """Hard-coded sizes in every view."""

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 6, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 6, 8))


@ZOO.add(sequence(6, 8), groups={"1.attn:head": 2, "1.mlp.fc1:out": 16, "0:out": 8}, heads=("1.attn:head",))
def hard_coded_views() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), _Block(8, 2, _SplitAttention), nn.LayerNorm(8), nn.Linear(8, 4))


class _GroupedQueryAttention(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        self.o = nn.Linear(8, 8, bias=False)

    def _repeat(self, x: Tensor) -> Tensor:
        if self.how == "interleave":
            return x.repeat_interleave(2, dim=1)
        b, heads, t, size = x.shape
        return x[:, :, None, :, :].expand(b, heads, 2, t, size).reshape(b, heads * 2, t, size)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 2).transpose(1, 2)
        k, v = (layer(x).view(b, t, 2, 2).transpose(1, 2) for layer in (self.k, self.v))
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, self._repeat(k), self._repeat(v), is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


class _SwiGLU(nn.Module):
    """Gate and value made by one projection, parted by chunk."""

    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(n, 2 * hidden, bias=False), nn.Linear(hidden, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class _Llama(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm1, self.attn, self.norm2, self.ffn = RMSNorm(8), _GroupedQueryAttention(how), RMSNorm(8), _SwiGLU(8, 6)
        self.norm, self.head = RMSNorm(8), nn.Linear(8, 11, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        x = x + self.attn(self.norm1(x))
        return self.head(self.norm(x + self.ffn(self.norm2(x))))


_LLAMA = {"embed:out": 8, "attn:head": 2, "ffn.w12:out": 6}


@ZOO.add(tokens(5, 11), groups=_LLAMA, heads=("attn:head",))
def gqa_interleave() -> nn.Module:
    return _Llama("interleave")


@ZOO.add(tokens(5, 11), groups=_LLAMA, heads=("attn:head",))
def gqa_expand() -> nn.Module:
    return _Llama("expand")


@ZOO.add(tokens(5, 11), groups=_LLAMA, heads=("attn:head",))
def gqa_sdpa() -> nn.Module:
    return _Llama("sdpa")


class _MultiQuery(nn.Module):
    """Query heads with rotary positions that share one head of keys and values."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.q, self.kv, self.o = how, nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(16, 3)
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def _turned(self, x: Tensor) -> Tensor:
        return x * self.cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self._turned(self.q(x).view(b, t, 4, 4).transpose(1, 2))
        k, v = self.kv(x).split(4, -1)
        k, v = self._turned(k[:, None]), v[:, None]
        if self.how == "expand":
            k, v = k.expand(b, 4, t, 4), v.expand(b, 4, t, 4)
        y = (q @ k.mT).softmax(-1) @ v if self.how == "matmul" else F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, t, 16))


_ONE_HEAD = {"kv": "fixed dimension"}


@ZOO.add(sequence(5, 6), groups={"q:head": 4}, heads=("q:head",), blocked=_ONE_HEAD)
def multi_query_sdpa() -> nn.Module:
    return _MultiQuery("sdpa")


@ZOO.add(sequence(5, 6), groups={"q:head": 4}, heads=("q:head",), blocked=_ONE_HEAD)
def multi_query_expand() -> nn.Module:
    return _MultiQuery("expand")


@ZOO.add(sequence(5, 6), groups={"q:head": 4}, heads=("q:head",), blocked=_ONE_HEAD)
def multi_query_matmul() -> nn.Module:
    return _MultiQuery("matmul")


@ZOO.add(sequence(5, 6), groups={"0:out": 4, "2:out": 5})
def glu() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 10), nn.GLU(dim=-1), nn.Linear(5, 3))


def _encoder(norm_first: bool, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, norm_first=norm_first, batch_first=batch_first)
    return _Encoder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), batch_first)


class _Encoder(nn.Module):
    def __init__(self, encoder: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.embed, self.encoder, self.head, self.batch_first = nn.Linear(4, 8), encoder, nn.Linear(8, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x[:, -1])


_ENCODER = {"embed:out": 8, "encoder.layers.0.self_attn:head": 2, "encoder.layers.0.linear1:out": 12,
            "encoder.layers.1.self_attn:head": 2, "encoder.layers.1.linear1:out": 12}  # fmt: skip
_HEADS = ("encoder.layers.0.self_attn:head", "encoder.layers.1.self_attn:head")


@ZOO.add(sequence(5, 4), groups=_ENCODER, heads=_HEADS)
def encoder_post_norm() -> nn.Module:
    return _encoder(False, True)


@ZOO.add(sequence(5, 4), groups=_ENCODER, heads=_HEADS)
def encoder_pre_norm() -> nn.Module:
    return _encoder(True, True)


@ZOO.add(sequence(5, 4), groups=_ENCODER, heads=_HEADS)
def encoder_post_norm_time_first() -> nn.Module:
    return _encoder(False, False)


@ZOO.add(sequence(5, 4), groups=_ENCODER, heads=_HEADS)
def encoder_pre_norm_time_first() -> nn.Module:
    return _encoder(True, False)


def _two_sequences(batch: int) -> tuple[Tensor, Tensor]:
    return sequence(4, 8)(batch), sequence(6, 5)(batch)


@ZOO.add(sequence(5, 8), groups={"fused:head": 2, "fused:out": 6}, heads=("fused:head",))
class ParallelBlock(nn.Module):
    """Queries, keys, values and a gated MLP out of one product, and one product behind them: heads are no neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.out, self.classes = nn.Linear(8, 24 + 12), nn.Linear(8 + 6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, up, gate = self.fused(x).split([8, 8, 8, 6, 6], -1)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.classes((x + self.out(torch.cat([heads, up * F.silu(gate)], -1))).mean(1))


@ZOO.add(sequence(5, 8), groups={"qkv:head": 2}, heads=("qkv:head",))
class BiasedScores(nn.Module):
    """Scores and their mask in one product, as nn.MultiheadAttention does where its weights are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        (b, t, _), later = x.shape, x.new_full((5, 5), float("-inf")).triu(1)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1) for part in self.qkv(x).chunk(3, -1))
        weights = torch.baddbmm(later, q * 0.5, k.transpose(1, 2)).softmax(-1)
        return self.out((weights @ v).view(b, 2, t, 4).transpose(1, 2).flatten(2))


@ZOO.add(sequence(5, 4), groups={"embed:out": 8, "attn.in_proj_weight:out": 4})
class ZeroAttention(nn.Module):
    """nn.MultiheadAttention with a key of zeros for every example and head, made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out((x + self.attn(x, x, x, need_weights=False)[0]).mean(1))


@ZOO.add(_two_sequences, groups={"attn:head": 2, "attn.out_proj:out": 8}, heads=("attn:head",))
class CrossAttention(nn.Module):
    """nn.MultiheadAttention with keys of another width, and its averaged weights as a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.attn(x, memory, memory, need_weights=False)
        return self.out(y), x.mean(1)


@ZOO.add(_two_sequences, groups={"a:out": 8, "attn:head": 2, "attn.out_proj:out": 8}, heads=("attn:head",))
class PackedCrossAttention(nn.Module):
    """nn.MultiheadAttention whose packed projections are cut for queries of one tensor and keys of another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.attn = nn.Linear(8, 8), nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.attn(self.a(x), self.b(memory), F.relu(self.b(memory)), need_weights=False)[0])


@ZOO.add(_two_sequences, groups={"a:out": 8, "decoder.self_attn:head": 2, "decoder.multihead_attn:head": 2,
                                 "decoder.linear1:out": 12},
         heads=("decoder.self_attn:head", "decoder.multihead_attn:head"))  # fmt: skip
class Decoder(nn.Module):
    """nn.TransformerDecoderLayer: keys and values of its cross attention are made in one product and then cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.decoder = nn.Linear(8, 8), nn.Linear(5, 8), nn.TransformerDecoderLayer(8, 2, 12, 0.1)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = self.a(x).transpose(0, 1), self.b(memory).transpose(0, 1)
        return self.out(self.decoder(x, memory).transpose(0, 1))


@ZOO.add(image(3, 8, 8), groups={"patch:out": 6, "tokens.fc1:out": 8, "channels.fc1:out": 10})
class MlpMixer(nn.Module):
    """MLPs over tokens and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, 4)
        self.norm1, self.tokens, self.norm2, self.channels = nn.LayerNorm(6), _Mlp(4, 8), nn.LayerNorm(6), _Mlp(6, 10)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(self.norm(x).mean(dim=1))


class _WindowAttention(nn.Module):
    """Swin: windows folded into the batch, a learned bias per head."""

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.heads, self.n = heads, n
        self.bias = nn.Parameter(torch.randn(heads, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.bias.unsqueeze(0)
        x = self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c))
        return x.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


@ZOO.add(image(3, 8, 8), groups={"patch:out": 6, "attn:head": 2, "mlp.fc1:out": 12, "reduce:out": 8},
         heads=("attn:head",))  # fmt: skip
class Swin(nn.Module):
    """Windows, and patch merging by strided slices."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm1, self.attn = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), _WindowAttention(6, 2)
        self.norm2, self.mlp = nn.LayerNorm(6), _Mlp(6, 12)
        self.norm, self.reduce, self.head = nn.LayerNorm(24), nn.Linear(24, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        x = self.reduce(self.norm(torch.cat(parts, -1)))
        return self.head(F.relu(x).mean((1, 2)))


@ZOO.add(tokens(6, 11), groups={"embed:out": 8, "attn:head": 2}, heads=("attn:head",))
class Rotary(nn.Module):
    """Rotary positions: halves of each head are swapped, so only whole heads go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attn = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in ("q", "k", "v", "o")})
        angles = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.1])).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.head = nn.Linear(8, 11)

    def _rotate(self, x: Tensor) -> Tensor:
        t = x.shape[2]
        half = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
        return x * self.cos[:t] + half * self.sin[:t]

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        b, t, _ = x.shape
        q, k, v = (self.attn[name](x).view(b, t, 2, 4).transpose(1, 2) for name in "qkv")
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v, is_causal=True)
        return self.head(x + self.attn["o"](y.transpose(1, 2).reshape(b, t, 8)))
