"""Captions that samplers add to a batch, and how the loss uses them."""

from __future__ import annotations

import random
from pathlib import Path

import open_clip
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from clip_negatives import attach
from clip_negatives.batches.extras import Additions, Captions
from clip_negatives.errors import DataError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.interfaces import Clusters, SamplingContext
from clip_negatives.learning_sampler import observer_of
from clip_negatives.storage.clusters_folder import write_clusters
from clip_negatives_plugins.extra_texts.hard import hardest
from clip_negatives_plugins.extra_texts.swapped import swapped
from tests.conftest import make_clusters

N, B = 60, 8
NAMES = ["hard_texts", "reliable_texts", "swapped_words"]
CAPTIONS = [f"red thing number {row}" for row in range(N)]


@pytest.fixture(scope="module")
def clusters() -> Clusters:
    return make_clusters(N)


def make(spec: str, clusters: Clusters, **more: object):
    context = SamplingContext(N, B, **{"clusters": clusters, "captions": CAPTIONS, **more})
    return registry.create("negative_sampler", spec, context)


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_others_and_stay_the_same_within_an_epoch(name: str, clusters: Clusters) -> None:
    sampler = make(f"{name}:per_image=3", clusters)
    assert Additions.of(sampler) == Additions(texts=3)
    batch = [5, 7, 50]
    first = sampler.extra_texts(batch)
    assert len(first) == 9
    assert all(text != CAPTIONS[index] for place, index in enumerate(batch) for text in first[3 * place : 3 * place + 3])
    assert sampler.extra_texts([50]) == first[6:]
    sampler.set_epoch(1)
    assert sampler.extra_texts(batch) != first
    resumed = make(f"{name}:per_image=3", clusters)
    resumed.load_state_dict({**sampler.state_dict(), "epoch": 0})
    assert resumed.extra_texts(batch) == first


@pytest.mark.parametrize("top", [4, 30])
def test_hardest_are_those_of_two_loops(top: int, clusters: Clusters) -> None:
    images, texts = clusters.image_features, clusters.text_features
    searched = torch.arange(0, N, 2)
    partners = hardest(images, texts, searched, top, 0.5)
    for i in range(N):
        products = {}
        for j in searched.tolist():
            s, t = float(images[i] @ images[j]), float(texts[i] @ texts[j])
            if i != j and s <= 0.5 and t <= 0.5:
                products[j] = max(s, 0.0) * max(t, 0.0)
        expected = sorted(products.values(), reverse=True)[:top]
        kept = [j for j in partners[i].tolist() if j >= 0]
        assert [products[j] for j in kept] == pytest.approx(expected, abs=1e-5)


def test_no_pair_that_is_no_near_duplicate(clusters: Clusters) -> None:
    with pytest.raises(InputError, match="has only near-duplicates"):
        make("hard_texts:near_duplicate=-1.0", clusters).extra_texts([0])


def test_reliable_texts_are_of_reliable_pairs(clusters: Clusters) -> None:
    sampler = make("reliable_texts:per_image=2", clusters)
    reliable = registry.create("negative_sampler", "cluster_similarity", sampler.context).reliable
    samples = sampler.choose(0)
    assert bool(reliable.between(torch.arange(N)[:, None].expand(N, 2), samples).all())


def test_swapped_words_are_the_same_words() -> None:
    text = "large green gloss mug"
    for seed in range(20):
        changed = swapped(text, random.Random(seed))
        assert changed is not None
        assert sorted(changed.split()) == sorted(text.split())
        assert sum(left != right for left, right in zip(changed.split(), text.split(), strict=True)) == 2
    assert swapped("mug Mug", random.Random(0)) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hard_texts:per_image=0", "per_image must be at least 1"),
        ("hard_texts:top=0", "top must be at least 1"),
        ("hard_texts:of=swapped_words", "adds captions itself"),
        ("hard_texts:near_duplicate=2.0", "near_duplicate must be at least -1 and at most 1"),
        ("reliable_texts:pairs=in_batch", "in_batch draws no pair"),
    ],
)
def test_bad_options(spec: str, words: str, clusters: Clusters) -> None:
    with pytest.raises(InputError, match=words):
        make(spec, clusters).extra_texts([0])


def test_batches_of_a_sampler_that_learns(clusters: Clusters) -> None:
    sampler = make("swapped_words:of=mined", clusters)
    assert observer_of(sampler).args == (sampler,)
    assert sampler.observe == sampler.sampler.observe
    memory = sampler.learned()
    memory["new.features"] += 1
    sampler.load_learned(memory)
    assert bool((sampler.sampler.new["features"] == 1).all())
    assert observer_of(make("swapped_words", clusters)) is None


@pytest.mark.parametrize("name", NAMES)
def test_needs_captions(name: str, clusters: Clusters) -> None:
    with pytest.raises(InputError, match="Train on csv data"):
        make(name, clusters, captions=None)


class Listings(Dataset):
    """Pairs of a noise image and a text, as in open_clip's csv data."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(3, generator=torch.Generator().manual_seed(row)), tokenize([CAPTIONS[row]])[0]


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[float(ord(letter)) for letter in text.ljust(30)] for text in texts])


@pytest.fixture(scope="module")
def folder(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("extra") / "clusters"
    samples = pa.table({"key": [str(row) for row in range(N)], "image": CAPTIONS, "text": CAPTIONS})
    write_clusters(target, clusters, samples, {})
    return target


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_loader_hands_out_each_text_with_those_that_come_with_it(name: str, workers: int, folder: Path) -> None:
    loader, loss = attach(
        DataLoader(Listings(), batch_size=B, num_workers=workers, drop_last=True),
        folder,
        sampler=f"{name}:per_image=2",
        tokenize=tokenize,
    )
    assert loss.added.texts == 2
    batches = 0
    for (images, texts), samples in loader:
        index = samples.ids.tolist()
        assert images.shape == (B, 3)
        expected = [
            line for row in index for line in (CAPTIONS[row], *loader.negatives.extra_texts([row]))
        ]  # the same epoch, so the same captions as in the workers
        assert torch.equal(texts, tokenize(expected))
        ids = samples.text_ids
        assert ids.shape == (B, 3)
        lines = dict(zip(expected, ids.flatten().tolist(), strict=True))
        assert len(set(lines.values())) == len(lines)
        assert ids.flatten().tolist() == [lines[line] for line in expected]
        batches += 1
    assert batches == len(loader) == N // B


def test_loss_is_that_of_images_against_all_texts_and_of_texts_against_images(folder: Path) -> None:
    loader, loss = attach(
        DataLoader(Listings(), batch_size=B), folder, sampler="swapped_words", weighting="uniform", tokenize=tokenize
    )
    (images, texts), samples = next(iter(loader))
    x, y = F.normalize(images @ torch.randn(3, 4), dim=1), F.normalize(texts @ torch.randn(30, 4), dim=1)
    own, extra = y[::2], y[1::2]
    target = torch.arange(B)
    by_image = F.cross_entropy(torch.cat([10 * x @ own.T, 10 * x @ extra.T], dim=1), target)
    expected = (by_image + F.cross_entropy(10 * own @ x.T, target)) / 2
    torch.testing.assert_close(loss(x, y, torch.tensor(10.0), samples=samples), expected)
    assert samples.text_ids.shape == (B, 2)
    with pytest.raises(InputError, match="need 16 text features"):
        loss(x, own, torch.tensor(10.0), samples=samples)
    torch.testing.assert_close(loss.eval()(x, own, torch.tensor(10.0)), open_clip.ClipLoss()(x, own, torch.tensor(10.0)))


@pytest.mark.parametrize("name", NAMES)
def test_log_weight_reaches_the_loss(name: str, folder: Path) -> None:
    data = DataLoader(Listings(), batch_size=B)
    options = {"weighting": "uniform", "tokenize": tokenize}
    loader, loss = attach(data, folder, sampler=f"{name}:log_weight=-inf", **options)
    (images, texts), samples = next(iter(loader))
    x, y = F.normalize(images @ torch.randn(3, 4), dim=1), F.normalize(texts @ torch.randn(30, 4), dim=1)
    expected = open_clip.ClipLoss()(x, y[::2], torch.tensor(10.0))
    torch.testing.assert_close(loss(x, y, torch.tensor(10.0), samples=samples), expected)
    with pytest.raises(InputError, match="log_weight must be a number below inf, got nan"):
        attach(data, folder, sampler=f"{name}:log_weight=nan", **options)


class Wrong(Listings):
    """Samples in the form of other data sets."""

    def __init__(self, sample: object) -> None:
        self.sample = sample

    def __getitem__(self, row: int) -> object:
        return self.sample


@pytest.mark.parametrize(
    ("sample", "tokens"),
    [
        ({"image": torch.zeros(3), "text": torch.zeros(30)}, tokenize),
        ((torch.zeros(3), "a text"), tokenize),
        ((torch.zeros(3), torch.zeros(1, 30)), tokenize),
        ((torch.zeros(3), torch.zeros(29)), tokenize),
        ((torch.zeros(3), torch.zeros(30)), lambda texts: {"input_ids": tokenize(texts)}),
        ((torch.zeros(3), torch.zeros(30)), lambda texts: tokenize(texts)[0]),
    ],
)
def test_samples_of_another_form_are_one_sentence(sample: object, tokens: object, folder: Path) -> None:
    data = DataLoader(Wrong(sample), batch_size=B)
    loader, _ = attach(data, folder, sampler="swapped_words", tokenize=tokens)
    with pytest.raises(DataError, match=r"needs samples \(image, tokens\)|must return tokens"):
        next(iter(loader))


def test_what_cannot_do_with_extra_texts_says_so(folder: Path) -> None:
    loader = DataLoader(Listings(), batch_size=B)
    with pytest.raises(InputError, match="tokenize="):
        attach(loader, folder, sampler="swapped_words")
    with pytest.raises(UnsupportedError, match="needs all logits"):
        attach(loader, folder, sampler="swapped_words", weighting="cwcl", tokenize=tokenize)


def test_captions_are_those_of_the_table() -> None:
    captions = Captions(pa.table({"text": ["a", "b", "c"]}))
    assert (len(captions), captions[1], captions[1:]) == (3, "b", ["b", "c"])
    assert open_clip.tokenize([captions[0]]).shape == (1, 77)
