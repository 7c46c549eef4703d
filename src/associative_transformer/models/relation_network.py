"""Relation network and its baseline without relations (Santoro et al. 2017, arXiv 1706.01427).

The sizes are those of kimhc6028/relational-networks, which the paper's CNN+RN and CNN+MLP follow;
the network that Santoro et al. describe for Sort-of-CLEVR is larger.

Dims     B batch   C channels   H W image side   Q question features   N objects
         F object width   R width of a relation   P relations   I inputs of g
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

from associative_transformer.float32 import Float32Linear
from associative_transformer.interface import ModelOutput
from associative_transformer.kernels.plain_linear import is_plain
from associative_transformer.models.layers import check_inputs, check_sizes
from associative_transformer.models.pretrained import PretrainedModel

CPU_RELATIONS = 5_000
"""Relations that a CPU computes at once. The activations of more relations would not fit into its
cache and would need newly allocated memory; `docs/explanation/reproduce.md` has the times.
"""
GPU_RELATIONS = 2_000_000
"""Relations that any other device computes at once: 2 GB for each layer of width 256."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class RelationNetworkConfig:
    """Sizes of a relation network; the defaults are those of CNN+RN on Sort-of-CLEVR."""

    kind: Literal["relation-network"] = "relation-network"
    """Name of the model in saved configurations."""
    image_size: int = 75
    """Height and width of the images in pixels."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of answers."""
    question_dim: int = 18
    """Q: features of a question about the image; 0: no question."""
    conv_dim: int = 24
    """Channels of each convolution."""
    num_convs: int = 4
    """Convolutions; each halves the image, and the result is the grid of objects."""
    num_objects: Literal[2, 3] = 2
    """Objects per relation: pairs, or triples for ternary questions."""
    num_relation_layers: int = 4
    """Layers of g, the network that computes a relation."""
    hidden_dim: int = 256
    """R: width of the layers of g and f."""
    dropout: float = 0.5
    """Share of the last hidden layer that is dropped in training."""

    def __post_init__(self) -> None:
        check_sizes(self)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ConvMLPConfig:
    """Sizes of a CNN with an MLP; the defaults are those of CNN+MLP on Sort-of-CLEVR."""

    kind: Literal["conv-mlp"] = "conv-mlp"
    """Name of the model in saved configurations."""
    image_size: int = 75
    """Height and width of the images in pixels."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of answers."""
    question_dim: int = 18
    """Q: features of a question about the image; 0: no question."""
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


class ConvEncoder(nn.Sequential):
    """Convolutions of stride 2, each followed by ReLU and then BatchNorm."""

    def __init__(self, config: RelationNetworkConfig | ConvMLPConfig) -> None:
        c = config
        layers: list[nn.Module] = []
        for before, after in pairwise([c.num_channels] + [c.conv_dim] * c.num_convs):
            layers.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
            layers += [nn.ReLU(), nn.BatchNorm2d(after)]
        super().__init__(*layers)
        self.side = -(-c.image_size // 2**c.num_convs)  # each convolution rounds up


class AnswerMLP(nn.Sequential):
    """Two hidden layers, dropout after the second, then logits.

    The reference's relation network returns the log-softmax of these logits.
    """

    def __init__(self, in_dim: int, config: RelationNetworkConfig | ConvMLPConfig) -> None:
        c = config
        super().__init__(
            Float32Linear(in_dim, c.hidden_dim),
            nn.ReLU(),
            Float32Linear(c.hidden_dim, c.hidden_dim),
            nn.ReLU(),
            nn.Dropout(c.dropout),  # the reference does not switch it off in evaluation
            Float32Linear(c.hidden_dim, c.num_classes),
        )


class RelationNetwork(PretrainedModel, tags=["relation-network"]):
    """Classifier that sums a learned relation over all pairs, or triples, of objects.

    An object is a cell in the grid of the convolutions: RN = f(sum_ij g(o_i, o_j, q)), Eq. 1.

    >>> images, questions = torch.rand(2, 3, 75, 75), torch.rand(2, 18)
    >>> logits, _ = RelationNetwork(CNN_RN)(images, questions)
    """

    coordinates: Tensor  # (N, 2)

    def __init__(self, config: RelationNetworkConfig) -> None:
        super().__init__()
        c = self.config = config
        self.stem = ConvEncoder(c)
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
        c = self.config
        check_inputs(images, questions, c.image_size, c.num_channels, c.question_dim)
        if questions is None:
            questions = images.new_empty(images.shape[0], 0)
        objects = self.find_objects(images)
        if torch.compiler.is_exporting():  # the number of chunks would depend on the batch
            relations = self.sum_relations(objects, questions)
        else:
            size = self.chunk_size(objects)
            chunks = zip(torch.split(objects, size), torch.split(questions, size), strict=True)
            relations = torch.cat([self.sum_relations(o, q) for o, q in chunks])
        return ModelOutput(self.f(relations), torch.zeros((), device=images.device))

    def find_objects(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        """Return the cells of the grid in raster order, each with its row and column."""
        features = rearrange(self.stem(images), "b f h w -> b (h w) f")
        return torch.cat([features, self.coordinates.expand(images.shape[0], -1, -1)], dim=-1)

    def chunk_size(self, objects: Float[Tensor, "B N F"]) -> int:
        """Return how many images pass through g together: a few on a CPU, which is faster."""
        limit = CPU_RELATIONS if objects.device.type == "cpu" else GPU_RELATIONS
        return max(1, limit // objects.shape[1] ** self.config.num_objects)

    def sum_relations(
        self, objects: Float[Tensor, "B N F"], questions: Float[Tensor, "B Q"]
    ) -> Float[Tensor, "B R"]:
        """Sum g over all ordered pairs or triples, including those of an object with itself.

        The first layer of g is linear: W [o_i, o_j, q] + b = W_i o_i + W_j o_j + (W_q q + b).
        It is therefore applied once per object and position, not once per relation, unless it has
        to be called because it has been replaced, parametrized or hooked.
        """
        if not (is_plain(self.g, nn.Sequential) and is_plain(self.g[0])):
            return self.g(self.relate(objects, questions)).sum(dim=1)
        first, width = cast(nn.Linear, self.g[0]), objects.shape[-1]
        widths = [width] * self.config.num_objects
        *w_objects, w_question = torch.split(first.weight, [*widths, questions.shape[-1]], dim=1)
        x = linear(questions, w_question, first.bias)[:, None]  # (B, 1, R)
        for weight in w_objects:  # one relation, then N, then N * N, ...
            x = (x[:, :, None] + linear(objects, weight)[:, None]).flatten(1, 2)
        return self.g[1:](x).sum(dim=1)

    def relate(
        self, objects: Float[Tensor, "B N F"], questions: Float[Tensor, "B Q"]
    ) -> Float[Tensor, "B P I"]:
        """Concatenate the objects of each relation and the question: the input of g."""
        rows = torch.arange(objects.shape[1], device=objects.device)
        indices = torch.cartesian_prod(*[rows] * self.config.num_objects)  # (P, objects)
        related = objects[:, indices].flatten(2)
        return torch.cat([related, questions[:, None].expand(-1, len(indices), -1)], dim=-1)


class ConvMLP(PretrainedModel, tags=["conv-mlp"]):
    """Classifier that passes the convolutions' grid and the question to an MLP, without relations.

    >>> images, questions = torch.rand(2, 3, 75, 75), torch.rand(2, 18)
    >>> logits, _ = ConvMLP(CNN_MLP)(images, questions)
    """

    def __init__(self, config: ConvMLPConfig) -> None:
        super().__init__()
        c = self.config = config
        self.stem = ConvEncoder(c)
        self.mlp = AnswerMLP(c.conv_dim * self.stem.side**2 + c.question_dim, c)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        c = self.config
        check_inputs(images, questions, c.image_size, c.num_channels, c.question_dim)
        grid = self.stem(images).flatten(1)
        x = grid if questions is None else torch.cat([grid, questions], dim=1)
        return ModelOutput(self.mlp(x), torch.zeros((), device=images.device))


CNN_RN = RelationNetworkConfig()
CNN_MLP = ConvMLPConfig()


def _coordinates(side: int) -> Float[Tensor, "N 2"]:
    """Return row and column of each cell in raster order, from -1 to 1; a single cell has 0."""
    middle = (side - 1) / 2
    steps = (torch.arange(side) - middle) / (middle or 1)
    # the reference divides without rounding, so its row coordinate grows along each row
    return torch.cartesian_prod(steps, steps)
