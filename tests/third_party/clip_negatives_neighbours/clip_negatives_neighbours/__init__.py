import torch

from clip_negatives import PlannedSampler, SamplingContext, hookimpl


class Neighbours(PlannedSampler):
    """Batches with runs of samples of one image cluster: harder negatives than a uniform shuffle."""

    def __init__(self, context: SamplingContext, run: int = 4) -> None:
        super().__init__(context, self._plan)
        self.run = run

    def _plan(self, generator: torch.Generator) -> torch.Tensor:
        used = torch.randperm(self.context.n_samples, generator=generator)[: len(self) * self.step_size]
        runs = used[self.context.clusters.image.labels[used].argsort(stable=True)].split(self.run)
        order = torch.randperm(len(runs), generator=generator).tolist()
        return torch.cat([runs[place] for place in order]).view(len(self), self.step_size)


@hookimpl
def clip_negatives_register_negative_samplers():
    return {"neighbours": Neighbours}
