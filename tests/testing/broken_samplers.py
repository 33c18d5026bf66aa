"""Broken samplers, by the one check that must fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clip_negatives.interfaces import IncorrectPairs, SamplingContext
from clip_negatives.learning_sampler import LearningSampler
from clip_negatives.sampling import PlannedSampler
from clip_negatives.step import Step


class Sound(PlannedSampler):
    """A correct sampler: a shuffle."""

    def __init__(self, context: SamplingContext) -> None:
        super().__init__(context, self.steps)

    def steps(self, generator: torch.Generator) -> torch.Tensor:
        return self.shuffled(generator)

    def shuffled(self, generator: torch.Generator) -> torch.Tensor:
        used = self.context.n_samples // self.step_size * self.step_size
        return torch.randperm(self.context.n_samples, generator=generator)[:used].view(-1, self.step_size)


class YieldsTuples(Sound):
    def __iter__(self) -> Iterator[Any]:
        return map(tuple, super().__iter__())


class RepeatsAnIndex(Sound):
    def __iter__(self) -> Iterator[list[int]]:
        return ([batch[0], *batch[:-1]] for batch in super().__iter__())


class CountsOneTooMany(Sound):
    def __len__(self) -> int:
        return super().__len__() + bool(super().__len__())

    def planned(self, epoch: int) -> torch.Tensor:
        return self.plan(torch.Generator().manual_seed(self.context.seed * 97 + epoch))

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch
            if self._position == super().__len__():
                return


class IgnoresItsRank(Sound):
    def __init__(self, context: SamplingContext) -> None:
        super().__init__(context)
        object.__setattr__(self.context, "rank", 0)


class ShortensTheLastRank(Sound):
    def __len__(self) -> int:
        last = self.context.world_size > 1 and self.context.rank == self.context.world_size - 1
        return super().__len__() - last

    def planned(self, epoch: int) -> torch.Tensor:
        return self.shuffled(torch.Generator().manual_seed(self.context.seed * 97 + epoch))


class SeedsItselfAnew(Sound):
    n_created = 0

    def __init__(self, context: SamplingContext) -> None:
        super().__init__(context)
        SeedsItselfAnew.n_created += 1
        self.shift = SeedsItselfAnew.n_created

    def planned(self, epoch: int) -> torch.Tensor:
        return super().planned(epoch).roll(self.shift, dims=0)


class IgnoresTheSeed(Sound):
    def planned(self, epoch: int) -> torch.Tensor:
        return self.plan(torch.Generator().manual_seed(epoch))


class IgnoresTheEpoch(Sound):
    def planned(self, epoch: int) -> torch.Tensor:
        return super().planned(0)


class ShufflesEachPassAnew(Sound):
    passes = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.passes = 0

    def planned(self, epoch: int) -> torch.Tensor:
        self.passes += 1
        return super().planned(epoch).roll(self.passes, dims=0)


class GoesOnAfterAnotherEpoch(Sound):
    def set_epoch(self, epoch: int) -> None:
        started = 0 < self._position < len(self)
        super().set_epoch(epoch)
        self._resumed = self._resumed or started


class DrawsGlobally(Sound):
    def steps(self, generator: torch.Generator) -> torch.Tensor:
        torch.rand(1)
        return self.shuffled(generator)


class WritesToTheClusters(Sound):
    def steps(self, generator: torch.Generator) -> torch.Tensor:
        self.context.clusters.image_similarity.fill_diagonal_(0.0)
        return self.shuffled(generator)


class HoldsALambda(Sound):
    def __init__(self, context: SamplingContext) -> None:
        super().__init__(context)
        self.rule = lambda index: index


class ReusesItsList(Sound):
    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for planned in super().__iter__():
            batch[:] = planned
            yield batch


class ResumesAtTheStart(Sound):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "position": 0})


class KeepsATensorInItsState(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "order": torch.arange(3)}


class TakesAnyState(Sound):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({"epoch": 0, "position": 0, **state})


class PairsAnImageWithItsText(Sound):
    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        pairs = super().incorrect_pairs(per_image, generator)
        text = pairs.text_index.clone()
        text[0] = pairs.image_index[0]
        return IncorrectPairs(pairs.image_index, text)


class RepeatsAPair(Sound):
    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        pairs = super().incorrect_pairs(per_image, generator)
        return IncorrectPairs(pairs.image_index[[0, *range(len(pairs))]], pairs.text_index[[0, *range(len(pairs))]])


class DrawsPairsByItself(Sound):
    drawn = 0

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        DrawsPairsByItself.drawn += 1
        return super().incorrect_pairs(per_image, torch.Generator().manual_seed(self.drawn))


class PairsOfSomeImages(Sound):
    def incorrect_pairs_of(self, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        n = self.context.n_samples
        steps = torch.randint(1, n, images.shape, generator=generator)
        return IncorrectPairs(images, (images + steps) % n)


class DrawsPairsOfOtherImages(PairsOfSomeImages):
    def incorrect_pairs_of(self, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        return super().incorrect_pairs_of(torch.arange(self.context.n_samples), per_image, generator)


class TakesAnyBatchSize(Sound):
    def __init__(self, context: SamplingContext) -> None:
        if context.batch_size * context.world_size > context.n_samples:
            context = SamplingContext(context.n_samples, context.n_samples, clusters=context.clusters)
        super().__init__(context)


class Texts(Sound):
    texts_per_image = 2

    def extra_texts(self, batch: list[int]) -> list[str]:
        return [f"text {index + step}" for index in batch for step in range(2)]


class AddsTooFewTexts(Texts):
    def extra_texts(self, batch: list[int]) -> list[str]:
        return super().extra_texts(batch)[1:]


class AddsOtherTextsEachTime(Texts):
    asked = 0

    def extra_texts(self, batch: list[int]) -> list[str]:
        AddsOtherTextsEachTime.asked += 1
        return [f"{text} {self.asked}" for text in super().extra_texts(batch)]


class Learns(LearningSampler):
    """A correct sampler that learns: a shuffle, turned by the number of the samples that it has seen."""

    def __init__(self, context: SamplingContext) -> None:
        super().__init__(context, self.steps, seen=torch.zeros(context.n_samples, dtype=torch.int64))

    def steps(self, generator: torch.Generator) -> Tensor:
        order = torch.randperm(self.context.n_samples, generator=generator).roll(int(self.memory["seen"].sum()) % 7)
        return order[: len(self) * self.step_size].view(-1, self.step_size)

    def observe(self, step: Step, losses: Tensor) -> None:
        self.new["seen"][step.samples.candidates] += 1


class LearnsAtOnce(Learns):
    def observe(self, step: Step, losses: Tensor) -> None:
        super().observe(step, losses)
        if self._epoch == 0:
            self.memory = self.new


class ForgetsAtAResume(Learns):
    def load_learned(self, learned: Any) -> None:
        super().load_learned({name: torch.zeros_like(value) for name, value in learned.items()})


class Images(Texts):
    images_per_image = 2
    log_weight = -0.5

    def extra_images(self, batch: list[int]) -> list[int]:
        return [(index + step) % self.context.n_samples for index in batch for step in (1, 2)]


class AddsTheImageItself(Images):
    def extra_images(self, batch: list[int]) -> list[int]:
        return [index for index in batch for _ in range(2)]


class AddsOtherImagesEachTime(Images):
    asked = 0

    def extra_images(self, batch: list[int]) -> list[int]:
        AddsOtherImagesEachTime.asked += 1
        steps = (1 + AddsOtherImagesEachTime.asked % 50, 60)
        return [(index + step) % self.context.n_samples for index in batch for step in steps]


class Redrawn(Sound):
    def own_texts(self, batch: list[int]) -> list[str]:
        return [f"text {index}" for index in batch]


class DrawsByPlaceInTheBatch(Redrawn):
    def own_texts(self, batch: list[int]) -> list[str]:
        return [f"{text} {place}" for place, text in enumerate(super().own_texts(batch))]


class WeighsByNan(Images):
    log_weight = float("nan")


BROKEN = {
    "global_generators_are_untouched": DrawsGlobally,
    "pickles": HoldsALambda,
    "batches_are_lists_of_b_indices": YieldsTuples,
    "no_index_twice_in_an_epoch": RepeatsAnIndex,
    "length_is_exact": CountsOneTooMany,
    "ranks_are_disjoint": IgnoresItsRank,
    "ranks_have_equal_length": ShortensTheLastRank,
    "same_seed_gives_the_same_batches": SeedsItselfAnew,
    "different_seeds_give_different_batches": IgnoresTheSeed,
    "next_epoch_differs": IgnoresTheEpoch,
    "epoch_is_repeatable": ShufflesEachPassAnew,
    "set_epoch_starts_at_the_first_batch": GoesOnAfterAnotherEpoch,
    "clusters_are_not_modified": WritesToTheClusters,
    "works_with_loader_workers": ReusesItsList,
    "resumes_within_an_epoch": ResumesAtTheStart,
    "state_is_json": KeepsATensorInItsState,
    "foreign_state_is_rejected": TakesAnyState,
    "too_large_batches_are_rejected": TakesAnyBatchSize,
    "incorrect_pairs_are_of_two_samples": PairsAnImageWithItsText,
    "incorrect_pairs_are_distinct": RepeatsAPair,
    "incorrect_pairs_follow_the_generator": DrawsPairsByItself,
    "incorrect_pairs_of_given_images": DrawsPairsOfOtherImages,
    "extra_texts_fit_the_batch": AddsTooFewTexts,
    "extra_texts_follow_the_seed": AddsOtherTextsEachTime,
    "observed_steps_count_in_the_next_epoch": LearnsAtOnce,
    "learned_state_resumes": ForgetsAtAResume,
    "extra_images_fit_the_batch": AddsTheImageItself,
    "extra_images_follow_the_seed": AddsOtherImagesEachTime,
    "own_texts_follow_the_seed": DrawsByPlaceInTheBatch,
    "log_weight_is_valid": WeighsByNan,
}
SOUND = (Sound, Texts, Images, Redrawn, PairsOfSomeImages, Learns)
