"""What the models share: token embedding, attention, feed-forward, saving and loading.

Dims     B batch   C channels   H W image side   P pixels of a patch times channels   N tokens
         Q question features   E token width   L context tokens   F context width
"""

import contextlib
import math
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import torch
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Positions = Literal["none", "learned"]
Model = TypeVar("Model", bound="PretrainedModel")

MODEL_CARD = """---
{{ card_data }}
---

A model of images of the Python package `associative_transformer`, a reference implementation of
the [Associative Transformer]({{ paper_url }}). Its sizes are in `config.json`.

```python
from associative_transformer import load_model

model = load_model("PATH")  # this folder, or its name on the hub; in evaluation mode
logits, _ = model(images)   # images (batch, channels, height, width), normalized as in training
# a model with a `question_dim` above 0 takes model(images, questions)
```
"""


class TokenEmbed(nn.Module):
    """Turn an image, and a question where there is one, into tokens.

    Tokens are ordered class token, question, patches in raster order. Inside a patch the order
    is (row, column, channel), channel fastest. The official code declares positions and never
    adds them: `pos="none"`.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_channels: int,
        embed_dim: int,
        question_dim: int = 0,
        pos: Positions = "none",
        use_class_token: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size = image_size, patch_size
        self.num_patches = (image_size // patch_size) ** 2
        self.num_tokens = self.num_patches + bool(question_dim) + use_class_token
        self.patches = _normalized_linear(patch_size**2 * num_channels, embed_dim)
        self.question = _normalized_linear(question_dim, embed_dim) if question_dim else None
        self.class_token = _small_normal(1, embed_dim) if use_class_token else None
        self.positions = _small_normal(self.num_tokens, embed_dim) if pos == "learned" else None

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        check_inputs(images, questions, self.image_size, self.question is not None)
        p = self.patch_size
        patches = rearrange(images, "b c (h i) (w j) -> b (h w) (i j c)", i=p, j=p)  # (B, N, P)
        tokens = [self.patches(patches)]
        if self.question is not None:
            tokens.insert(0, self.question(questions)[:, None])
        if self.class_token is not None:
            tokens.insert(0, self.class_token.expand(len(images), 1, -1))
        x = torch.cat(tokens, dim=1)  # (B, N, E)
        return x if self.positions is None else x + self.positions


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens; only the output projection has a bias."""

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        qkv = rearrange(self.to_qkv(x), "b n (z h d) -> z b h n d", z=3, h=self.num_heads)
        attended = scaled_dot_product_attention(*qkv)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context; only the output projection has a bias."""

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(embed_dim, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "B N E"], context: Float[Tensor, "B L F"]
    ) -> Float[Tensor, "B N E"]:
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(self.to_kv(context), "b l (z h d) -> z b h l d", z=2, h=self.num_heads)
        attended = scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class FeedForward(nn.Sequential):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__(
            nn.Linear(embed_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, embed_dim)
        )


class FlattenHead(nn.Sequential):
    """Classify all tokens at once, each at its own place."""

    def __init__(self, num_tokens: int, embed_dim: int, num_classes: int) -> None:
        width = num_tokens * embed_dim
        super().__init__(nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, num_classes))


class PretrainedModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="associative_transformer",
    paper_url="https://arxiv.org/abs/2309.12862",
    license="mit",
    pipeline_tag="image-classification",
    model_card_template=MODEL_CARD,
):
    """A model built from one `config`, with `save_pretrained` and `push_to_hub` of the hub."""

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        **kwargs: Any,  # noqa: ANN401
    ) -> Model:
        """Load a model from a folder or from the hub, in evaluation mode.

        Takes the keyword arguments of `PyTorchModelHubMixin.from_pretrained`. The configuration
        is read strictly, nested fields included, and every weight must be there: the mixin alone
        leaves nested fields as dictionaries and ignores missing weights.
        """
        path = pretrained_model_name_or_path
        config_type = get_type_hints(cls.__init__)["config"]
        config = TypeAdapter(config_type).validate_json(read_config(path, **kwargs))
        with contextlib.redirect_stdout(None):  # the mixin prints what it does
            return super().from_pretrained(path, **{"config": config, "strict": True, **kwargs})

    def reference_parameters(self) -> int:
        """Count as the paper's table does: with what the reference code never uses."""
        return sum(parameter.numel() for parameter in self.parameters())


def read_config(path: str | Path, **options: Any) -> str:  # noqa: ANN401
    """Read `config.json` from a folder, or from the hub with `from_pretrained`'s options.

    Raises FileNotFoundError, or what the hub's client raises, where there is none.
    """
    if Path(path).is_dir():
        return (Path(path) / CONFIG_NAME).read_text()
    where = {"revision", "cache_dir", "force_download", "token", "local_files_only"}
    given = {key: value for key, value in options.items() if key in where}
    return Path(hf_hub_download(str(path), CONFIG_NAME, **given)).read_text()


def check_inputs(
    images: Float[Tensor, "B C H W"],
    questions: Float[Tensor, "B Q"] | None,
    image_size: int,
    takes_questions: bool,
) -> None:
    """Raise ValueError where images are of another size, or questions too many or missing."""
    height, width = images.shape[-2:]
    if (height, width) != (image_size, image_size):
        size = f"{image_size}x{image_size}"
        raise ValueError(f"images are {height}x{width} but the model takes {size}")
    if takes_questions != (questions is not None):
        takes = "a question beside each image" if takes_questions else "no questions"
        raise ValueError(f"this model takes {takes}")


def check_sizes(config: object) -> None:
    """Check those of the sizes known here that the configuration of a model has.

    Raises ValueError, naming field and value, where one is out of range or the patch does not
    divide the image.
    """
    sizes = vars(config)
    for name, value in sizes.items():
        if name in _AT_LEAST_ONE and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if sizes["question_dim"] < 0:
        raise ValueError(f"question_dim must not be negative, not {sizes['question_dim']}")
    if not 0 < sizes.get("mlp_ratio", 1.0) < math.inf:
        raise ValueError(f"mlp_ratio must be positive, not {sizes['mlp_ratio']}")
    if not 0 <= sizes.get("dropout", 0.0) < 1:
        raise ValueError(f"dropout must be at least 0 and less than 1, not {sizes['dropout']}")
    if sizes["image_size"] % sizes.get("patch_size", 1):
        raise ValueError(
            f"patch_size {sizes['patch_size']} does not divide image_size {sizes['image_size']}"
        )


_AT_LEAST_ONE = {
    "image_size",
    "patch_size",
    "num_channels",
    "num_classes",
    "embed_dim",
    "depth",
    "num_heads",
    "head_dim",
    "conv_dim",
    "num_convs",
    "num_relation_layers",
    "hidden_dim",
}


def _normalized_linear(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim))


def _small_normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.02)
