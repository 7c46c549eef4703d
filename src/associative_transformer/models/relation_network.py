"""Relation network and its rival without relations (Santoro et al. 2017, arXiv 1706.01427).

The sizes are those of kimhc6028/relational-networks, which the paper's CNN+RN and CNN+MLP follow;
the network that Santoro et al. describe for Sort-of-CLEVR is larger.

Dims     B batch   C channels   H W image side   Q question features   N objects
         F object width   R width of a relation
Sizes    images of 75 pixels: a grid of 5 by 5, N 25, F 24 + 2, R 256; 625 pairs, 15,625 triples
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import linear

from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import check_inputs, check_sizes
from associative_transformer.models.pretrained import PretrainedModel

CPU_RELATIONS = 5_000
"""Relations that a CPU computes at once. The activations of more leave its cache, and each comes
in fresh pages from the system; `docs/reproduce.md` has the times.
"""
GPU_RELATIONS = 2_000_000
"""Relations that another device computes at once: 2 GB for each layer of width 256."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class RelationNetworkConfig:
    """Sizes of a relation network; the defaults are the paper's CNN+RN on Sort-of-CLEVR."""

    kind: Literal["relation-network"] = "relation-network"
    """Tells the model configurations apart."""
    image_size: int = 75
    """Height and width of the images in pixels."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Answers to tell apart."""
    question_dim: int = 18
    """Q: features of a question about the image; 0: none."""
    conv_dim: int = 24
    """Channels of each convolution."""
    num_convs: int = 4
    """Convolutions; each halves the image, and what is left is the grid of objects."""
    num_objects: Literal[2, 3] = 2
    """Objects that a relation takes: pairs, or triples for ternary questions."""
    num_relation_layers: int = 4
    """Layers of g, which computes a relation."""
    hidden_dim: int = 256
    """R: width of the layers of g and f."""
    dropout: float = 0.5
    """Share of the last hidden layer that is dropped in training."""

    def __post_init__(self) -> None:
        check_sizes(self)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ConvMLPConfig:
    """Sizes of convolutions with an MLP; the defaults are the paper's CNN+MLP on Sort-of-CLEVR."""

    kind: Literal["conv-mlp"] = "conv-mlp"
    """Tells the model configurations apart."""
    image_size: int = 75
    """Height and width of the images in pixels."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Answers to tell apart."""
    question_dim: int = 18
    """Q: features of a question about the image; 0: none."""
    conv_dim: int = 24
    """Channels of each convolution."""
    num_convs: int = 4
    """Convolutions; each halves the image."""
    hidden_dim: int = 256
    """Width of the hidden layers."""
    dropout: float = 0.5
    """Share of the last hidden layer that is dropped in training."""

    def __post_init__(self) -> None:
        check_sizes(self)


class ConvStem(nn.Sequential):
    """Turn images into small grids by convolutions of stride 2; ReLU stands before BatchNorm."""

    def __init__(self, config: RelationNetworkConfig | ConvMLPConfig) -> None:
        c = config
        layers: list[nn.Module] = []
        for before, after in pairwise([c.num_channels] + [c.conv_dim] * c.num_convs):
            layers.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
            layers += [nn.ReLU(), nn.BatchNorm2d(after)]
        super().__init__(*layers)
        self.side = -(-c.image_size // 2**c.num_convs)  # each one rounds up


class AnswerMLP(nn.Sequential):
    """Give the answer: two hidden layers, dropout after the second, then logits.

    The relation network of the reference returns the log-softmax of these logits.
    """

    def __init__(self, in_dim: int, config: RelationNetworkConfig | ConvMLPConfig) -> None:
        c = config
        super().__init__(
            nn.Linear(in_dim, c.hidden_dim),
            nn.ReLU(),
            nn.Linear(c.hidden_dim, c.hidden_dim),
            nn.ReLU(),
            nn.Dropout(c.dropout),  # the reference forgets to switch it off in evaluation
            nn.Linear(c.hidden_dim, c.num_classes),
        )


class RelationNetwork(PretrainedModel, tags=["relation-network"]):
    """Answer from the sum of a learned relation over all pairs, or triples, of objects.

    An object is a place in the grid of the convolutions: RN = f(sum_ij g(o_i, o_j, q)), Eq. 1.
    """

    coordinates: Tensor  # (N, 2)

    def __init__(self, config: RelationNetworkConfig) -> None:
        super().__init__()
        c = self.config = config
        self.stem = ConvStem(c)
        self.register_buffer("coordinates", _coordinates(self.stem.side), persistent=False)
        in_dim = c.num_objects * (c.conv_dim + 2) + c.question_dim
        layers: list[nn.Module] = []
        for before, after in pairwise([in_dim] + [c.hidden_dim] * c.num_relation_layers):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]  # saves memory
        self.g = nn.Sequential(*layers)
        self.f = AnswerMLP(c.hidden_dim, c)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        check_inputs(images, questions, self.config.image_size, self.config.question_dim > 0)
        if questions is None:
            questions = images.new_empty(len(images), 0)
        objects = self.find_objects(images)
        size = self.images_at_once(objects)
        chunks = zip(torch.split(objects, size), torch.split(questions, size), strict=True)
        relations = torch.cat([self.sum_relations(o, q) for o, q in chunks])
        return ModelOutput(self.f(relations), torch.zeros((), device=images.device))

    def find_objects(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        """Take the places of the grid in raster order, each with its row and column."""
        features = rearrange(self.stem(images), "b f h w -> b (h w) f")
        return torch.cat([features, self.coordinates.expand(len(images), -1, -1)], dim=-1)

    def images_at_once(self, objects: Float[Tensor, "B N F"]) -> int:
        """Give the images to pass through g together: a few on a CPU, which is faster."""
        limit = CPU_RELATIONS if objects.device.type == "cpu" else GPU_RELATIONS
        return max(1, limit // objects.shape[1] ** self.config.num_objects)

    def sum_relations(
        self, objects: Float[Tensor, "B N F"], questions: Float[Tensor, "B Q"]
    ) -> Float[Tensor, "B R"]:
        """Sum g over all ordered pairs or triples, those of an object with itself included.

        The first layer of g is linear: W [o_i, o_j, q] + b = W_i o_i + W_j o_j + (W_q q + b).
        So each object passes it once in each place, instead of once in each relation.
        """
        first, width = cast(nn.Linear, self.g[0]), objects.shape[-1]
        places = [width] * self.config.num_objects
        *for_places, for_question = torch.split(
            first.weight, [*places, questions.shape[-1]], dim=1
        )
        x = linear(questions, for_question, first.bias)[:, None]  # (B, 1, R)
        for weight in for_places:  # one relation, then N, then N * N, ...
            x = (x[:, :, None] + linear(objects, weight)[:, None]).flatten(1, 2)
        return self.g[1:](x).sum(dim=1)


class ConvMLP(PretrainedModel, tags=["conv-mlp"]):
    """Answer from the grid of the convolutions and the question by an MLP, without relations."""

    def __init__(self, config: ConvMLPConfig) -> None:
        super().__init__()
        c = self.config = config
        self.stem = ConvStem(c)
        self.mlp = AnswerMLP(c.conv_dim * self.stem.side**2 + c.question_dim, c)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        check_inputs(images, questions, self.config.image_size, self.config.question_dim > 0)
        seen = self.stem(images).flatten(1)
        x = seen if questions is None else torch.cat([seen, questions], dim=1)
        return ModelOutput(self.mlp(x), torch.zeros((), device=images.device))


CNN_RN = RelationNetworkConfig()
CNN_MLP = ConvMLPConfig()


def _coordinates(side: int) -> Float[Tensor, "N 2"]:
    """Give row and column of each place in raster order, from -1 to 1; a single place has 0."""
    middle = (side - 1) / 2
    steps = (torch.arange(side) - middle) / (middle or 1)
    # the reference divides the row without rounding, so that it grows along each row
    return torch.cartesian_prod(steps, steps)
