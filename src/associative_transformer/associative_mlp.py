"""A feed-forward with a workspace, in the place of the feed-forward of other libraries' models.

Dims     B batch   N tokens   H W grid of tokens   E token width
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer.balance import LossScale, attach_loss, store_balance_loss
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig


class AssociativeMlp(nn.Module):
    """A feed-forward whose tokens write into a workspace and read from it.

    u = LN(FFN(x)),  output = u + r, with r read from the workspace

    The arguments and the names of the weights are those of `timm.layers.Mlp`, so that a model of
    timm takes it as `mlp_layer`. `workspace` configures the memory; the default is that of the
    paper, one memory for the batch. Tokens may also form a grid.

    >>> layer = AssociativeMlp(64, 128, workspace=WorkspaceConfig(scope="image"))
    >>> layer(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])

    In training, the gradient of the balance loss is attached to the output (`balance.attach_loss`,
    with `loss_scale`), so there is nothing to add to the loss. If `loss_scale` is None, it is not:
    add `balance.collect_balance_loss(model)` to the loss instead.

    The layer is not causal. With one memory for the batch, nothing passes from token to token in
    evaluation, but in training each token reads what later tokens have written.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] | None = None,
        bias: bool = True,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        workspace: WorkspaceConfig | None = None,
        loss_scale: LossScale | None = 1.0,
    ) -> None:
        super().__init__()
        if out_features not in (None, in_features):
            raise ValueError(
                f"out_features must be None or in_features ({in_features}), not {out_features}: "
                "the memory has the width of the tokens"
            )
        hidden = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden, bias=bias)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(hidden)
        self.fc2 = nn.Linear(hidden, in_features, bias=bias)
        self.drop2 = nn.Dropout(drop)
        self.output_norm = nn.LayerNorm(in_features)
        self.workspace = GlobalWorkspace(in_features, workspace)
        self.loss_scale = loss_scale
        self.to(device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "B *N E"]) -> Float[Tensor, "B *N E"]:
        u = self.fc2(self.norm(self.drop1(self.act(self.fc1(x)))))
        u = self.output_norm(self.drop2(u))
        read, balance_loss = self.workspace(u.flatten(1, -2))
        output = u + read.view_as(u)
        if self.loss_scale is not None:
            return attach_loss(output, balance_loss, self.loss_scale)
        if self.training:
            store_balance_loss(self, balance_loss)
        return output
