"""What the README shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from clip_negatives import ClipNegativesError, attach, write_clusters
from clip_negatives.step import BatchSamples

from .conftest import make_clusters

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    found = [code for kind, code in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL) if kind == language]
    (one,) = [code for code in found if containing in code]
    return one


def test_ci_runs_the_test_command_word_for_word() -> None:
    assert block("bash", "tox").strip() in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_plugin_is_the_one_that_is_tested() -> None:
    theirs = ROOT / "tests" / "third_party" / "clip_negatives_neighbours" / "clip_negatives_neighbours" / "__init__.py"
    assert block("python", "Neighbours") == theirs.read_text()


def test_the_loop(tmp_path: Path) -> None:
    """Run the loop of the README as it stands, with open_clip's signature of model and loss."""
    import pyarrow as pa

    clusters = make_clusters(64)
    samples = pa.table({"key": [str(row) for row in range(64)], "text": ["text"] * 64})
    write_clusters(tmp_path / "clusters", clusters, samples, {})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, images: torch.Tensor, texts: torch.Tensor) -> dict[str, torch.Tensor]:
            features = [nn.functional.normalize(tower(x), dim=1) for tower, x in ((self.image, images), (self.text, texts))]
            return {"image_features": features[0], "text_features": features[1], "logit_scale": torch.tensor(10.0)}

    lines = block("diff", "attach").splitlines()
    assert sum(line.startswith("+") for line in lines) == 5
    code = (
        "\n".join(line[1:] for line in lines if line[0] != "-").replace('"clusters/"', "clusters")
        + "\n        collect.append(losses)\n"
    )
    collect: list[dict[str, torch.Tensor]] = []
    data = TensorDataset(torch.randn(64, 8), torch.randn(64, 8))
    names = {"loader": DataLoader(data, batch_size=16), "model": Model(), "epochs": 2, "collect": collect}
    exec(code, names | {"clusters": tmp_path / "clusters"})
    assert len(collect) == 2 * 4
    assert all(set(losses) == {"contrastive_loss"} and losses["contrastive_loss"].requires_grad for losses in collect)


def test_weights_of_attach_follow_the_batch(tmp_path: Path) -> None:
    """The loss of the wrapped loop equals the loss with the index given by hand."""
    import pyarrow as pa

    clusters = make_clusters(64)
    write_clusters(tmp_path / "c", clusters, pa.table({"key": list(map(str, range(64))), "text": ["x"] * 64}), {})
    data = torch.nn.functional.normalize(torch.randn(64, 6), dim=1)
    loader, loss = attach(DataLoader(TensorDataset(data, torch.arange(64)), batch_size=16, num_workers=2), tmp_path / "c")
    for (features, index), samples in loader:
        found = loss(features, features, torch.tensor(5.0), samples=samples)
        assert torch.equal(found, loss(features, features, torch.tensor(5.0), samples=BatchSamples(ids=index)))
        others = BatchSamples(ids=(index + 1) % 64)
        assert not torch.equal(found, loss(features, features, torch.tensor(5.0), samples=others))


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


class _Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2), 0)])


@pytest.mark.parametrize(
    ("loader", "options", "words"),
    [
        (DataLoader(_Stream(), batch_size=2), {}, "reads a stream"),
        (DataLoader(TensorDataset(torch.zeros(64)), batch_size=None), {}, "Create the loader with batch_size="),
        (DataLoader(TensorDataset(torch.zeros(64)), batch_sampler=[[0, 1]]), {}, "Create the loader with batch_size="),
        (DataLoader(TensorDataset(torch.zeros(63)), batch_size=8), {"sampler": "in_batch"}, "training data has 63"),
        (DataLoader(TensorDataset(torch.zeros(64)), batch_size=8), {"backend": "foo"}, "backend"),
        (DataLoader(TensorDataset(torch.zeros(64)), batch_size=8), {"seed": -1}, "seed"),
        (DataLoader(TensorDataset(torch.zeros(64)), batch_size=80), {}, "smaller batch size"),
    ],
)
def test_what_cannot_be_attached(loader: DataLoader, options: dict[str, object], words: str, tmp_path: Path) -> None:
    import pyarrow as pa

    samples = pa.table({"key": list(map(str, range(64))), "text": ["x"] * 64})
    write_clusters(tmp_path / "c", make_clusters(64), samples, {})
    with pytest.raises(ClipNegativesError, match=words):
        attach(loader, tmp_path / "c", **options)
