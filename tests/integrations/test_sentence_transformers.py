"""The loss beside sentence-transformers' own, and its trainer with our batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from clip_negatives.errors import ArtifactError, DataError, InputError, UnsupportedError
from clip_negatives.host import registry
from clip_negatives.integrations.sentence_transformers import NegativesBatches, NegativesRankingLoss, with_index
from clip_negatives.interfaces import SamplingContext
from clip_negatives.losses.kernels import log_weights
from tests.integrations.clustered import BATCH, N, write_folder

STEPS = N // BATCH
BOTH = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
COLUMNS = ("anchor", "positive", "negative", "negative_2")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def clusters(tmp_path: Path):
    return write_folder(tmp_path / "clusters")


@pytest.fixture
def model() -> SentenceTransformer:
    return words_model()


def words_model() -> SentenceTransformer:
    words = {"[UNK]": 0} | {f"{column}{row}": i for i, (column, row) in enumerate(_names(), start=1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def _names():
    return [(column, row) for column in COLUMNS for row in range(N)]


def data(n: int = N, columns: int = 2) -> Dataset:
    return Dataset.from_dict({column: [f"{column}{row}" for row in range(n)] for column in COLUMNS[:columns]})


def features(model: SentenceTransformer, index: torch.Tensor, columns: int = 2) -> list[dict[str, torch.Tensor]]:
    return [model.preprocess([f"{column}{row}" for row in index.tolist()]) for column in COLUMNS[:columns]]


INDEX = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:BATCH]


def value_and_gradient(loss, model, columns, labels=INDEX):
    model.zero_grad()
    value = loss(features(model, INDEX, columns), labels)
    value.backward()
    return value.detach(), model[0].embedding.weight.grad.clone()


@pytest.mark.parametrize("columns", [2, 4])
def test_the_scale_is_a_fixed_temperature(model, clusters, columns):
    """Hard negatives are in the denominator, and have no target."""
    ours = NegativesRankingLoss(model, scale=10.0, clusters=clusters[0], weighting="blend:mass=0.5")
    value, gradient = value_and_gradient(ours, model, columns)
    queries, *documents = (
        F.normalize(part["sentence_embedding"], dim=1) for part in map(model, features(model, INDEX, columns))
    )
    z = 10.0 * queries @ torch.cat(documents).T
    factors = ours.weighted.terms.target_factors[INDEX]
    target = 0.5 * torch.eye(BATCH) + 0.5 * (factors @ factors.T).fill_diagonal_(-torch.inf).softmax(1)
    expected = F.cross_entropy(z, F.pad(target, (0, z.shape[1] - BATCH)))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, model[0].embedding.weight)[0])


@pytest.mark.parametrize("how", [{}, {"partition_mode": "per_direction"}, BOTH], ids=["one way", "per direction", "both ways"])
@pytest.mark.parametrize("columns", [2, 4])
def test_uniform_is_the_loss_of_sentence_transformers(model, clusters, how, columns):
    ours = NegativesRankingLoss(model, scale=7.0, **how, clusters=clusters[0], weighting="uniform")
    theirs = MultipleNegativesRankingLoss(model, scale=7.0, **how)
    expected = value_and_gradient(theirs, model, columns)
    torch.testing.assert_close(value_and_gradient(ours, model, columns), expected, rtol=1e-5, atol=1e-7)


def test_weights_are_those_of_the_samples(model, clusters):
    weighting = "weighted_infonce:normalize=false"
    loss = NegativesRankingLoss(model, clusters=clusters[0], weighting=weighting)
    terms = registry.create("loss_weighting", weighting)(clusters[1]).take(INDEX)
    b = log_weights.block(terms, terms).fill_diagonal_(0)
    assert b.abs().max() > 0.1
    x, y = (F.normalize(model(part)["sentence_embedding"], dim=1) for part in features(model, INDEX))
    expected = F.cross_entropy(20 * x @ y.T + b, torch.arange(BATCH))
    torch.testing.assert_close(loss(features(model, INDEX), INDEX), expected)


def test_evaluation_is_unweighted_and_needs_no_index(model, clusters):
    loss = NegativesRankingLoss(model, clusters=clusters[0])
    with torch.no_grad():
        expected = MultipleNegativesRankingLoss(model)(features(model, INDEX), None)
        torch.testing.assert_close(loss(features(model, INDEX), None), expected)


class Watched(NegativesRankingLoss):
    """Note the index of every batch, and hold it to the words that the batch shows."""

    def forward(self, sentence_features, labels=None):
        columns = list(sentence_features)
        if torch.is_grad_enabled():
            assert [(part["input_ids"] - 1 - place * N).tolist() for place, part in enumerate(columns)] == [labels.tolist()] * 2
            self.__dict__.setdefault("seen", []).append(labels.tolist())
        return super().forward(columns, labels)


def train(tmp_path: Path, model: SentenceTransformer, sampler: str, *, resume: str | None = None, **more) -> Watched:
    loss = Watched(model, clusters=tmp_path / "clusters")
    how = {"per_device_train_batch_size": BATCH, "num_train_epochs": 2, "save_strategy": "no", "report_to": "none"}
    how |= {"use_cpu": True, "disable_tqdm": True, "seed": 5, "batch_sampler": NegativesBatches(tmp_path / "clusters", sampler)}
    run = SentenceTransformerTrainingArguments(str(tmp_path / "run"), **how | more)
    json.loads(run.to_json_string())  # as loggers and checkpoints write it
    trainer = SentenceTransformerTrainer(model, run, with_index(data(), tmp_path / "clusters"), data(20), loss=loss)
    trainer.train(resume)
    if resume is None:
        assert trainer.evaluate()["eval_loss"] > 0
    return loss


def test_batches_are_the_samplers_and_it_resumes_within_an_epoch(tmp_path, clusters, model):
    sampler = registry.create("negative_sampler", "cluster_similarity", SamplingContext(N, BATCH, seed=5, clusters=clusters[1]))
    expected = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    how = {"dataloader_num_workers": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    assert train(tmp_path, model, "cluster_similarity", **how).seen == expected
    resumed = train(tmp_path, model, "cluster_similarity", resume=str(tmp_path / "run" / "checkpoint-4"), **how)
    assert resumed.seen == expected[8:]


def test_a_data_set_may_be_shuffled_after_it_got_its_ids(clusters):
    ordered = with_index(data(), clusters[0])
    shuffled = ordered.shuffle(seed=1)
    expected = list(NegativesBatches(clusters[0])(ordered, BATCH, True))
    found = [[shuffled[row]["label"] for row in batch] for batch in NegativesBatches(clusters[0])(shuffled, BATCH, True)]
    assert found == expected


def test_ids_of_other_clusters_are_refused(clusters, tmp_path):
    """A dict of data sets has clusters for each: ids of one must not take the batches of another."""
    other, _ = write_folder(tmp_path / "other", groups=5)
    for sampler in ("cluster_similarity", "in_batch"):
        NegativesBatches(other, sampler)(with_index(data(), other), BATCH, True)
        with pytest.raises(InputError, match=r"ids for other clusters than .*other"):
            NegativesBatches(other, sampler)(with_index(data(), clusters[0]), BATCH, True)


def test_in_batch_keeps_the_trainers_own_batches(tmp_path, clusters, model):
    ours = train(tmp_path, model, "in_batch").seen
    assert len(ours) == 2 * STEPS
    assert ours == train(tmp_path, model, "", batch_sampler="batch_sampler").seen


def test_steps_of_several_processes_are_dealt_out(clusters, monkeypatch):
    whole = NegativesBatches(clusters[0])(with_index(data(), clusters[0]), 2 * BATCH, True)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    dealt = NegativesBatches(clusters[0], gather_across_devices=True)(with_index(data(), clusters[0]), BATCH, True)
    dealt.set_epoch(3)
    whole.set_epoch(3)
    assert len(dealt) == 2 * len(whole) == len(list(dealt))
    parts = list(dealt)
    assert [parts[at] + parts[at + 1] for at in range(0, len(parts), 2)] == list(whole)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"similarity_fct": torch.matmul}, "must be cos_sim"),
        ({"directions": BOTH["directions"]}, "partition_mode='per_direction'"),
        ({"directions": ("query_to_doc", "doc_to_doc")}, "directions must be"),
        ({"weighting": "sogclr"}, "cannot save the state"),
        ({"weighting": "weighted_infonce:warmup=0.5"}, "does not know the progress"),
    ],
)
def test_what_the_loss_cannot_do_is_refused(model, clusters, how, message):
    with pytest.raises(UnsupportedError, match=message):
        NegativesRankingLoss(model, clusters=clusters[0], **how)


def test_hard_negatives_with_a_loss_of_all_logits_are_refused(model, clusters):
    loss = NegativesRankingLoss(model, clusters=clusters[0], weighting="cwcl")
    assert loss(features(model, INDEX), INDEX) > 0
    with pytest.raises(UnsupportedError, match="cwcl needs all logits"):
        loss(features(model, INDEX, 3), INDEX)


@pytest.mark.parametrize("labels", [None, torch.zeros(BATCH, dtype=torch.int64), torch.rand(BATCH), INDEX + N])
def test_labels_that_are_no_index_are_refused(model, clusters, labels):
    with pytest.raises(InputError, match=r"Train on with_index\(dataset, clusters\)"):
        NegativesRankingLoss(model, clusters=clusters[0])(features(model, INDEX), labels)


def test_data_that_do_not_fit_are_refused(clusters):
    with pytest.raises(InputError, match="Remove this column"):
        with_index(data().add_column("score", [0.0] * N), clusters[0])
    batches = NegativesBatches(clusters[0])
    with pytest.raises(DataError, match="Use with_index"):
        batches(data(), BATCH, True)
    with pytest.raises(InputError, match="training data has 20"):
        with_index(data(20), clusters[0])
    with pytest.raises(InputError, match="training data has 20"):
        batches(with_index(data(), clusters[0]).select(range(20)), BATCH, True)
    with pytest.raises(ArtifactError, match="belong to other data or another order: positive differs at sample"):
        with_index(data().select_columns("positive").shuffle(seed=1), clusters[0])
    twice = with_index(data(), clusters[0])
    with pytest.raises(InputError, match="every sample id once"):
        batches(concatenate_datasets([twice.select(range(N - 1)), twice.select([0])]), BATCH, True)
    with pytest.raises(UnsupportedError, match="adds captions, which sentence-transformers"):
        NegativesBatches(clusters[0], "swapped_words")(with_index(data(), clusters[0]), BATCH, True)
    with pytest.raises(UnsupportedError, match="adds captions and images, which sentence-transformers"):
        NegativesBatches(clusters[0], "triplets")(with_index(data(), clusters[0]), BATCH, True)
