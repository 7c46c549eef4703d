"""Silencing: how the answers of an AiT change if its tokens cannot read from one of the priors.

The attractor of the prior is left out of the softmax of the read in one layer. The prior still
writes, and the weights of the other priors sum to 1.

Dims     L layers   M priors   Z = M - 1   O classes   B batch   N tokens per image
         E token width
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from associative_transformer.analysis.trace import in_evaluation
from associative_transformer.interface import PADDING, Batch, UserError, format_count
from associative_transformer.models.ait import AiT, Block
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_outputs import WorkspaceOutput

MAX_ANSWERS = 8_192
"""Default limit on the total number of answers of all silenced models."""


@dataclass(frozen=True)
class Silencing:
    """How the answers change, compared with the whole model, if one prior is silenced."""

    num_images: int  # with questions: number of questions
    classes: list[str]  # with questions: answers
    accuracy: float  # share of correct answers of the whole model
    silenced_accuracy: Float[np.ndarray, "L M"]
    changed: Float[np.ndarray, "L M"]  # share of the answers that change
    shift: Float[np.ndarray, "L M"]  # mean absolute change of a logit
    logit_change: Float[np.ndarray, "L M O"]  # mean change of each logit

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        yield (
            f"if a prior is silenced ({format_count(self.num_images, 'item')}, "
            f"{100 * self.accuracy:.2f} % correct):"
        )
        for layer, accuracy in enumerate(self.silenced_accuracy):
            worst = int(accuracy.argmin())
            yield (
                f"  layer {layer + 1}: {100 * self.changed[layer].mean():.2f} % of the answers "
                f"change on average; lowest accuracy {100 * accuracy[worst]:.2f} %, without prior "
                f"{worst + 1}"
            )


class _Answers(NamedTuple):
    """The logits of a batch, of the whole model and with each prior silenced."""

    labels: Int[Tensor, " B"]
    whole: Float[Tensor, "B O"]
    silenced: Float[Tensor, "L M B O"]


@torch.no_grad()
def measure_silencing(
    model: PretrainedModel,
    batches: Iterable[Batch],
    classes: Sequence[str],
    num_images: int | None = None,
) -> Silencing:
    """Measure how the answers of an AiT change if each prior of each layer is silenced in turn.

    By default, the silenced models give at most 8,192 answers in total, but each answers at least
    one image. Raises UserError if the model is not an AiT that reads its
    memory, and ValueError if there are no images.
    """
    if not isinstance(model, AiT) or model.config.read == "none":
        raise UserError(
            f"this {type(model).__name__} reads no priors to silence: use a run of AiT"
        )
    num_models = model.config.depth * model.config.workspace.num_priors
    num_missing = max(1, MAX_ANSWERS // num_models) if num_images is None else num_images
    sums: list[Tensor] = []
    num_answered = 0
    with in_evaluation(model):
        for batch in batches:
            labels, whole, silenced = _answer(model, _first(batch, num_missing - num_answered))
            change = (silenced - whole).double().cpu()
            right = [each.argmax(dim=-1) == labels for each in (whole, silenced)]
            is_changed = silenced.argmax(dim=-1) != whole.argmax(dim=-1)
            parts = [x.double().sum(dim=-1).cpu() for x in (*right, is_changed)]
            parts += [change.abs().mean(dim=-1).sum(dim=-1), change.sum(dim=-2)]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            num_answered += len(labels)
            if num_answered >= num_missing:
                break
    if num_answered == 0:
        raise ValueError("there are no images to answer")
    correct, silenced_correct, changed, shift, logit_change = (x / num_answered for x in sums)
    return Silencing(
        num_images=num_answered,
        classes=list(classes),
        accuracy=correct.item(),
        silenced_accuracy=silenced_correct.numpy(),
        changed=changed.numpy(),
        shift=shift.numpy(),
        logit_change=logit_change.numpy(),
    )


@contextmanager
def silence(workspace: GlobalWorkspace, prior: int) -> Iterator[None]:
    """Take the attractor of a prior out of what tokens read."""

    def remove(
        _: nn.Module, __: tuple[Any, ...], attractors: Float[Tensor, "*B M E"]
    ) -> Float[Tensor, "*B Z E"]:
        return torch.cat([attractors[..., :prior, :], attractors[..., prior + 1 :, :]], dim=-2)

    with workspace.to_attractor.register_forward_hook(remove):
        yield


def _first(batch: Batch, number: int) -> Batch:
    """Return the first items of a batch, without padding."""
    kept = (batch.labels != PADDING).nonzero()[:number, 0]
    questions = None if batch.questions is None else batch.questions[kept]
    return Batch(batch.images[kept], questions, batch.labels[kept])


def _answer(model: AiT, batch: Batch) -> _Answers:
    """Compute the logits; what comes before a silenced read is computed only once."""
    blocks = [cast(Block, block) for block in model.blocks]
    x, silenced = model.embed(batch.images, batch.questions), []
    for number, block in enumerate(blocks):
        base, u = _pass_unread(block, x)
        for prior in range(model.config.workspace.num_priors):
            with silence(block.workspace, prior):
                tokens = base + block.workspace(u).read
            silenced.append(model.head(_pass(blocks[number + 1 :], tokens)))
        x = base + block.workspace(u).read
    logits = torch.stack(silenced)
    by_layer = logits.view(len(blocks), -1, *logits.shape[1:])
    return _Answers(batch.labels, model.head(x), by_layer)


def _pass_unread(
    block: Block, x: Float[Tensor, "B N E"]
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
    """Return the output of a block without the read, and the input of its workspace."""
    inputs = []

    def leave_out(_: nn.Module, given: tuple[Any, ...], output: WorkspaceOutput) -> object:
        inputs.append(given[0])
        return output._replace(read=torch.zeros_like(output.read))

    with block.workspace.register_forward_hook(leave_out):
        return block(x).tokens, inputs[0]


def _pass(blocks: Iterable[Block], x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
    for block in blocks:
        x = block(x).tokens
    return x
