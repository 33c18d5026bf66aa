"""Train the small model on a part of the catalogue, with a loop and a loss of your own. A stopped run goes on."""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clip_negatives import AnchorLoss, Columns, attach, catalogue, read_clusters
from clip_negatives.dataset import open_table
from clip_negatives.integrations.open_clip.tiny import tiny_model
from clip_negatives.pipelines.prepare import prepare

work = Path(tempfile.mkdtemp())
pairs = open_table(catalogue.export(work / "catalogue", split="test", format="csv") / "test.csv", Columns(group="subgroup"))
prepare(pairs, work / "clusters")


class Listings(Dataset):
    def __init__(self, transform, tokenizer):
        self.transform, self.tokenizer, self.captions = transform, tokenizer, pairs.texts

    def __len__(self):
        return len(pairs)

    def __getitem__(self, row):
        return self.transform(Image.open(pairs.image_paths[row]).convert("RGB")), self.tokenizer(pairs.texts[row])[0]


class LearnedFactor(AnchorLoss):
    """InfoNCE with a learned factor of the logits."""

    def __init__(self, clusters):
        super().__init__()
        self.log_factor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, anchors):
        logits = self.log_factor.exp() * anchors.logits
        return logits.logsumexp(1) - logits.diagonal(anchors.samples.offset)


model, transform, tokenizer = tiny_model(seed=0)
native = DataLoader(Listings(transform, tokenizer), batch_size=64, shuffle=True, drop_last=True)
loader, loss = attach(native, work / "clusters", sampler="cluster_similarity", weighting="uniform", epochs=2)
loss.set_terms(LearnedFactor(read_clusters(work / "clusters").clusters))  # without a plugin; else, weighting="my_weighting"
optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()], lr=1e-3)
parts = {"model": model, "loss": loss, "optimizer": optimizer, "loader": loader}
if (work / "last.pt").exists():  # a stopped run goes on
    for name, state in torch.load(work / "last.pt").items():
        parts[name].load_state_dict(state)

losses = []
for epoch in range(loader.epoch, 2):
    loader.set_epoch(epoch)
    for (images, texts), samples in loader:
        optimizer.zero_grad()
        value = loss(**model(images, texts), samples=samples)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    torch.save({name: part.state_dict() for name, part in parts.items()}, work / "last.pt")
