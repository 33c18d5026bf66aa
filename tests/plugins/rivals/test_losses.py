"""Every rival loss equals its formula, written as loops over Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.losses.functional import weighted_info_nce
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from tests.conftest import make_clusters
from tests.info_nce import features, gradients

N, B, SCALE, BIAS = 60, 12, 5.0, -0.5
INDEX = torch.tensor([3, 41, 7, 19, 58, 0, 22, 23, 24, 50, 9, 31])
SAMPLES = BatchSamples(ids=INDEX)
Row = Callable[["Side", int], float]


@pytest.fixture
def data() -> Clusters:
    """Return clusters with texts and groups; samples 3 and 7, and 22 and 23, are duplicates in every respect."""
    clusters = make_clusters(N, 6, 5)
    for one, other in ((3, 7), (22, 23)):
        for side in (clusters.image, clusters.text):
            side.labels[other] = side.labels[one]
        for part in (clusters.image_features, clusters.text_features):
            part[other] = part[one]
    texts = torch.arange(N)
    texts[7], texts[23] = 3, 22
    return replace(clusters, texts=texts, groups=torch.arange(N) // 2)


@dataclass
class Side:
    """Input of an oracle for one direction: z, s, frozen similarities and clusters, as nested lists."""

    modality: str
    z: list[list[float]]
    s: list[list[float]]
    image: list[list[float]]
    text: list[list[float]]
    clusters: Clusters

    def others(self, i: int) -> list[int]:
        return [j for j in range(B) if j != i]

    def either(self, i: int, j: int) -> float:
        return max(self.image[i][j], self.text[i][j])

    def same(self, i: int, j: int, by: str) -> bool:
        codes = {
            "text": self.clusters.texts,
            "group": self.clusters.groups,
            "image_cluster": self.clusters.image.labels,
            "text_cluster": self.clusters.text.labels,
        }[by]
        return bool(codes[INDEX[i]] == codes[INDEX[j]])


def plain(row: Side, i: int, weight: Callable[[int], float], alpha: float = 1.0) -> float:
    """Return InfoNCE of anchor i with the weight of each negative."""
    told = alpha * math.exp(row.z[i][i]) + sum(weight(j) * math.exp(row.z[i][j]) for j in row.others(i))
    return math.log(told) - row.z[i][i]


def mean_one(weight: Callable[[int], float], others: list[int]) -> Callable[[int], float]:
    kept = [weight(j) for j in others if weight(j) > 0]
    return lambda j: weight(j) * len(kept) / sum(kept)


def targets(row: Side, i: int, share: Callable[[int], float]) -> float:
    total = sum(share(j) for j in range(B))
    log_sum = math.log(sum(math.exp(value) for value in row.z[i]))
    return log_sum - sum(share(j) / total * row.z[i][j] for j in range(B))


def blend(row: Side, i: int, by: tuple[str, ...], *, mass: float = 0.2, temperature: float = 0.1, centre: bool = True) -> float:
    """Return the cross-entropy to ``(1 - mass) I + mass q``, with q from features that are centred over all samples."""

    def cosine(features: list[list[float]], k: int, m: int) -> float:
        mean = [sum(column) / N * centre for column in zip(*features, strict=True)]
        one, other = ([value - middle for value, middle in zip(features[n], mean, strict=True)] for n in (k, m))
        return sum(map(math.prod, zip(one, other, strict=True))) / math.hypot(*one) / math.hypot(*other)

    samples, parts = INDEX.tolist(), [getattr(row.clusters, f"{name}_features").tolist() for name in by]
    alike = [sum(cosine(part, samples[i], samples[j]) for part in parts) / len(parts) for j in range(B)]
    total = sum(math.exp(alike[j] / temperature) for j in row.others(i))
    return targets(row, i, lambda j: 1 - mass if j == i else mass * math.exp(alike[j] / temperature) / total)


def hard(row: Side, i: int, beta: float) -> Callable[[int], float]:
    return mean_one(lambda j: math.exp(beta * row.z[i][j]), row.others(i))


def debiased(row: Side, i: int, weight: Callable[[int], float], t: float) -> float:
    m, own = B - 1, math.exp(row.z[i][i])
    s = sum(weight(j) * math.exp(row.z[i][j]) for j in row.others(i))
    return math.log(own + max((s - t * m * own) / (1 - t), m * math.exp(BIAS - SCALE))) - row.z[i][i]


def gist(row: Side, i: int, guides: list[list[list[float]]], margin: float, relative: bool) -> float:
    def weight(j: int) -> float:
        for g in guides:
            if g[i][j] > g[i][i] - margin * (abs(g[i][i]) if relative else 1):
                return 0.0
        return 1.0

    return plain(row, i, weight)


def reliable(clusters: Clusters, name: str, quantile: float) -> list[list[bool]]:
    """Return for every two samples whether their clusters differ and are below the quantile of all pairs."""
    labels, table = getattr(clusters, name).labels.tolist(), getattr(clusters, f"{name}_similarity").tolist()
    alike = [[table[labels[k]][labels[m]] for m in range(N)] for k in range(N)]
    limit = sorted(alike[k][m] for k in range(N) for m in range(N) if k != m)[math.ceil(quantile * N * (N - 1)) - 1]
    return [[labels[k] != labels[m] and alike[k][m] < limit for m in range(N)] for k in range(N)]


def exchanges(clusters: Clusters) -> list[list[bool]]:
    image, text = reliable(clusters, "image", 0.7), reliable(clusters, "text", 0.8)
    return [[image[k][m] and text[k][m] for m in range(N)] for k in range(N)]


def gate(row: Side, i: int, *, text: bool) -> float:
    kept, samples = exchanges(row.clusters) if text else reliable(row.clusters, "image", 0.7), INDEX.tolist()
    return plain(row, i, lambda j: float(kept[samples[i]][samples[j]]))


def swap(row: Side, i: int, per_image: float) -> float:
    """Return the loss with each reliable exchange drawn by the hash of its two samples."""
    kept, samples = exchanges(row.clusters), INDEX.tolist()
    share = per_image / (sum(map(sum, kept)) / (N * (N - 1)) * (B - 1))
    return plain(row, i, lambda j: float(kept[samples[i]][samples[j]] and hashed(*sorted((samples[i], samples[j])), 0) < share))


def hashed(low: int, high: int, seed: int) -> float:
    """Return 24 bits of SplitMix64's mixing of two samples and a seed, as a number within 0 .. 1."""
    wrap = 2**64
    mixed = (low * 0x1F123BB5 + high * 0x9E3779B1 + (seed + 1) * 0x632BE59BD9B4E019) % wrap
    mixed = ((mixed ^ (mixed >> 30)) * (-0x40A7B892E31B1A47 % wrap)) % wrap
    mixed = ((mixed ^ (mixed >> 27)) * (-0x6B2FB644ECCEEE15 % wrap)) % wrap
    mixed ^= mixed >> 31
    return (mixed & (2**24 - 1)) / 2**24


def sigmoid(row: Side, i: int, weight: Callable[[int], float] = lambda j: 1.0, positive: Callable[[int], bool] | None = None):
    total = 0.0
    for j in range(B):
        correct = j == i or (positive is not None and positive(j))
        total += (1.0 if correct else weight(j)) * math.log1p(math.exp(-row.z[i][j] if correct else row.z[i][j]))
    return total


def cluster_weight(row: Side, i: int) -> Callable[[int], float]:
    a, c = row.clusters.image.labels[INDEX], row.clusters.text.labels[INDEX]
    r, t = row.clusters.image_similarity, row.clusters.text_similarity
    return lambda j: math.exp(-float(r[a[i], a[j]]) - float(t[c[i], c[j]]))


ORACLES: dict[str, Row] = {
    "id_mask": lambda row, i: plain(row, i, lambda j: float(not row.same(i, j, "text"))),
    "id_mask:by=image_cluster": lambda row, i: plain(row, i, lambda j: float(not row.same(i, j, "image_cluster"))),
    "multi_positive:by=group": lambda row, i: targets(row, i, lambda j: float(row.same(i, j, "group"))),
    "multi_positive:by=text_cluster": lambda row, i: targets(row, i, lambda j: float(row.same(i, j, "text_cluster"))),
    "margin:margin=-0.1": lambda row, i: plain(
        row, i, lambda j: float(row.s[i][j] <= row.s[i][i] - 0.1 and not row.same(i, j, "text"))
    ),
    "gist": lambda row, i: gist(row, i, [row.text], 0.05, relative=True),
    "gist:guide=both,margin=0.3,kind=absolute": lambda row, i: gist(row, i, [row.image, row.text], 0.3, relative=False),
    "dcl": lambda row, i: debiased(row, i, lambda j: 1.0, 0.1),
    "hcl:hardness=1.0": lambda row, i: debiased(row, i, hard(row, i, 1.0), 0.1),
    "hn_nce:positive_weight=0.5": lambda row, i: plain(row, i, hard(row, i, 0.25), alpha=0.5),
    "dhn_nce": lambda row, i: plain(row, i, hard(row, i, 0.15), alpha=0.0),
    "llave:alpha=3.0": lambda row, i: plain(row, i, lambda j: math.exp(3 * row.s[i][j])),
    "known_different": lambda row, i: plain(
        row,
        i,
        mean_one(lambda j: math.exp(0.25 * row.z[i][j]) * (1 - min(max(row.either(i, j), 0), 1)), row.others(i)),
    ),
    "cwcl": lambda row, i: (
        targets(row, i, lambda j: (1 + row.image[i][j]) / 2) if row.modality == "image" else plain(row, i, lambda j: 1.0)
    ),
    "cwcl:by=text": lambda row, i: (
        targets(row, i, lambda j: (1 + row.text[i][j]) / 2) if row.modality == "text" else plain(row, i, lambda j: 1.0)
    ),
    "x_clr": lambda row, i: targets(row, i, lambda j: math.exp(row.text[i][j] / 0.1)),
    "blend": lambda row, i: blend(row, i, ("image", "text")),
    "blend:mass=0.5,by=text,similarity_temperature=0.5": lambda row, i: blend(row, i, ("text",), mass=0.5, temperature=0.5),
    "blend:by=image,centre=false": lambda row, i: blend(row, i, ("image",), centre=False),
    "gate:image_quantile=0.7": lambda row, i: gate(row, i, text=False),
    "gate2:image_quantile=0.7,text_quantile=0.8": lambda row, i: gate(row, i, text=True),
    "swap:per_image=2,image_quantile=0.7,text_quantile=0.8": lambda row, i: swap(row, i, 2.0),
    "weight:gamma=2.0,form=half,normalize=false": lambda row, i: plain(row, i, lambda j: ((1 - row.image[i][j]) / 2) ** 2),
    "weight:by=either": lambda row, i: plain(row, i, mean_one(lambda j: 1 - min(max(row.either(i, j), 0), 1), row.others(i))),
    # When a sample is seen first, u is g and the loss is 1 / scale; test_state.py tests later steps.
    "sogclr": lambda row, i: 1 / SCALE,
    # Thresholds start at 1; nothing is removed before a sample is seen for the fourth time.
    "glofnd": lambda row, i: plain(row, i, lambda j: 1.0),
    "siglip": lambda row, i: sigmoid(row, i),
    "siglip:of=weighted_infonce": lambda row, i: sigmoid(row, i, cluster_weight(row, i)),
    "siglip:of=multi_positive": lambda row, i: sigmoid(row, i, positive=lambda j: row.same(i, j, "text")),
    "siglip:of=id_mask": lambda row, i: sigmoid(row, i, lambda j: float(not row.same(i, j, "text"))),
}
OURS = {item.name for item in registry.default_registry().items("loss_weighting") if item.distribution == "clip-negatives"}
SPECS = list(ORACLES)


def loss_of(spec: str, clusters: Clusters, **options: object) -> NegativesClipLoss:
    return NegativesClipLoss(terms=registry.create("loss_weighting", spec)(clusters), **options)


def inputs() -> tuple[torch.Tensor, ...]:
    x, y = features(B, 4)
    return x, y, *(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (SCALE, BIAS))


def rows(x: torch.Tensor, y: torch.Tensor, clusters: Clusters) -> list[Side]:
    s = (x @ y.T).detach()
    image, text = (part[INDEX].double() for part in (clusters.image_features, clusters.text_features))
    frozen = (image @ image.T).tolist(), (text @ text.T).tolist()
    return [
        Side(modality, (SCALE * one + BIAS).tolist(), one.tolist(), *frozen, clusters)
        for modality, one in (("image", s), ("text", s.T))
    ]


def test_every_weighting_has_an_oracle_or_its_own_tests() -> None:
    own = {"uniform", "weighted_infonce", "random_reduction"}  # tests/plugins/test_weightings.py
    own |= {file.stem.removeprefix("test_") for file in Path(__file__).parents[1].rglob("test_*.py")}
    assert OURS - own == {spec.partition(":")[0] for spec in ORACLES}


@pytest.mark.parametrize("spec", ORACLES)
def test_equals_its_formula(spec: str, data: Clusters) -> None:
    x, y, scale, bias = inputs()
    found = loss_of(spec, data)(x, y, scale, bias, samples=SAMPLES)
    expected = sum(ORACLES[spec](row, i) for row in rows(x, y, data) for i in range(B)) / (2 * B)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_treats_both_modalities_and_every_order_alike(spec: str, data: Clusters) -> None:
    x, y, scale, bias = inputs()
    found = loss_of(spec, data)(x, y, scale, bias, samples=SAMPLES)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    permuted = loss_of(spec, data)(x[order], y[order], scale, bias, samples=BatchSamples(ids=INDEX[order]))
    torch.testing.assert_close(permuted, found)
    for one, other in zip(gradients(permuted, x, y), gradients(found, x, y), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near(spec: str, dtype: torch.dtype, data: Clusters) -> None:
    x, y, scale, bias = inputs()
    exact = loss_of(spec, data)(x, y, scale, bias, samples=SAMPLES)
    rounded = [part.detach().to(dtype).requires_grad_() for part in (x, y)]
    found = loss_of(spec, data)(*rounded, scale.detach().float(), bias.detach().float(), samples=SAMPLES)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-4 if dtype == torch.float32 else 0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(found, *rounded))


@pytest.mark.parametrize("spec", SPECS)
def test_extreme_scale_and_two_samples_are_finite(spec: str, data: Clusters) -> None:
    for n, scale in ((B, 100.0), (2, 1e-3)):
        x, y = (part.detach()[:n].float().requires_grad_() for part in features(B, 4))
        # 3 and 7 are duplicates: a batch of these two may have no negative left.
        loss = loss_of(spec, data)(
            x, y, torch.tensor(scale), torch.tensor(0.0), samples=BatchSamples(ids=torch.tensor([3, 7, *range(30, 40)])[:n])
        )
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(loss, x, y))


def test_gradient_of_llave_stops_at_the_weight(data: Clusters) -> None:
    x, y, scale, bias = inputs()
    found = gradients(loss_of("llave:alpha=3.0", data)(x, y, scale, bias, samples=SAMPLES), x)[0]
    b = (3 * x @ y.T).detach().fill_diagonal_(0)
    z, target = scale * x @ y.T + bias, torch.arange(B)
    expected = gradients((F.cross_entropy(z + b, target) + F.cross_entropy((z + b).T, target)) / 2, x)[0]
    torch.testing.assert_close(found, expected)


def test_siglip_is_open_clips(data: Clusters) -> None:
    x, y, scale, bias = inputs()
    found, expected = loss_of("siglip", data)(x, y, scale, bias, samples=SAMPLES), SigLipLoss()(x, y, scale, bias)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, x, y, scale, bias), gradients(expected, x, y, scale, bias), strict=True):
        torch.testing.assert_close(one, other)


def test_cross_guide_looks_at_image_against_text(data: Clusters) -> None:
    x, y, scale, bias = inputs()
    found = loss_of("gist:guide=cross,margin=0.0", data)(x, y, scale, bias, samples=SAMPLES)
    g = data.image_features[INDEX].double() @ data.text_features[INDEX].double().T
    z, own = (scale * x @ y.T + bias).detach(), torch.eye(B, dtype=torch.bool)
    losses = [
        F.cross_entropy(z.masked_fill((g > g.diagonal()[:, None]) & ~own, -torch.inf), torch.arange(B))
        for z, g in ((z, g), (z.T, g.T))
    ]
    torch.testing.assert_close(found, sum(losses) / 2)
    with pytest.raises(InputError, match="their sizes differ: 8 and 3"):
        loss_of("gist:guide=cross", replace(data, text_features=data.text_features[:, :3]))


def test_swap_draws_reliable_pairs_alike_in_both_directions_and_anew(data: Clusters) -> None:
    loss = loss_of("swap:per_image=3,image_quantile=0.7,text_quantile=0.8", data)
    kept, again = [], []
    for found in (kept, again):
        x, y = torch.zeros(2, N, 4)
        hook = loss.anchor_loss.register_forward_hook(lambda module, step, result, found=found: found.append(result))
        loss(x, y, torch.tensor(1.0), samples=BatchSamples(ids=torch.arange(N)))
        hook.remove()
    counts = [result.exp().round() - 1 for result in kept]  # equal logits: log(1 + negatives)
    torch.testing.assert_close(counts[0], counts[1])
    assert 2 < counts[0].mean() < 4
    assert not torch.equal(kept[0], again[0])
    gated = loss_of("gate2:image_quantile=0.7,text_quantile=0.8", data)
    few = loss_of("swap:per_image=1000,image_quantile=0.7,text_quantile=0.8", data)
    x, y, scale, bias = inputs()
    torch.testing.assert_close(few(x, y, scale, bias, samples=SAMPLES), gated(x, y, scale, bias, samples=SAMPLES))


@pytest.mark.parametrize("spec", ["weight", "weight:form=half", "known_different"])
def test_equal_features_count_as_equal_whatever_their_cosine_rounds_to(spec: str, data: Clusters) -> None:
    """A duplicate is removed and does not count in the mean of the weights, if its cosine is 1 or nearly 1."""
    dim, x, y = 384, *(side.detach().float() for side in features(B, 4))
    one = F.normalize(torch.randn(1, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    part = F.normalize(torch.randn(N, dim, generator=torch.Generator().manual_seed(1)), dim=1)
    found = []
    for rounding in (0.0, 1e-7, -1e-7, 3e-7):
        alike = part.clone()
        alike[[3, 7, 22, 23]] = one * (1 + rounding)  # cosines of 1 + 2 * rounding, as in float32 sums
        clusters = replace(data, image_features=alike, text_features=alike)
        found.append(float(loss_of(spec, clusters)(x, y, torch.tensor(SCALE), samples=SAMPLES)))
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "what"), [("id_mask:by=group", "--group-column"), ("id_mask", "a labels folder has no texts")]
)
def test_groups_that_are_not_known(spec: str, what: str, data: Clusters) -> None:
    with pytest.raises(InputError, match=what):
        loss_of(spec, replace(data, texts=None, groups=None))


@pytest.mark.parametrize("spec", ["gist", "known_different", "weight", "blend", "cwcl", "x_clr"])
def test_features_that_were_not_kept(spec: str, data: Clusters) -> None:
    with pytest.raises(InputError, match="Run clip-negatives prepare --keep-features"):
        loss_of(spec, replace(data, image_features=None, text_features=None))


@pytest.mark.parametrize(
    "spec",
    [
        "margin:margin=3", "gist:margin=-1", "dcl:positive_rate=1", "hcl:hardness=-1", "hn_nce:positive_weight=-1",
        "llave:alpha=-1", "known_different:gamma=-1", "blend:mass=1.1", "blend:similarity_temperature=0",
        "blend:rank=0", "siglip:of=blend", "x_clr:temperature=0", "weight:gamma=-1", "swap:per_image=0",
        "sogclr:gamma=0", "sogclr:temperature=0", "glofnd:alpha=2", "glofnd:lr=0", "siglip:of=hcl", "siglip:of=gist",
    ],
)  # fmt: skip
def test_options_out_of_range(spec: str, data: Clusters) -> None:
    option, value = spec.partition(":")[2].split("=")
    with pytest.raises(InputError, match=rf"^{option} must be .*, got|\b{value}\b"):
        loss_of(spec, data)


def test_a_loss_of_its_own_needs_all_logits(data: Clusters) -> None:
    for how in ({"backend": "chunked"}, {"ring": True}):
        with pytest.raises(UnsupportedError, match="needs all logits"):
            loss_of("llave", data, **how)
    with pytest.raises(InputError, match="needs the sample ids"):
        loss_of("llave", data)(*inputs())


def test_terms_take_the_place_of_a_loss_and_back(data: Clusters) -> None:
    x, y, scale, bias = inputs()
    loss = loss_of("llave", data)
    loss.set_terms(LossTerms())
    assert loss.anchor_loss is None
    torch.testing.assert_close(loss(x, y, scale, bias), weighted_info_nce(x, y, scale, bias))
    loss.set_terms(registry.create("loss_weighting", "llave")(data))
    assert isinstance(loss.anchor_loss, AnchorLoss)
