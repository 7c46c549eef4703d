"""Train an AiT under accelerate and FSDP2, started by `accelerate launch` on GPUs.

Fails if the loss or the memory differs from that of one process with the whole batch.
"""

from copy import deepcopy

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer import distributed
from associative_transformer.data import Share
from associative_transformer.models.ait import AiT
from drivers.ranks import BATCH, CONFIG, draw


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Tensor:
    output = model(images)
    loss = cross_entropy(output.logits, labels) + output.aux_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def main() -> None:
    accelerator = Accelerator()
    assert accelerator.is_fsdp2
    torch.manual_seed(0)
    alone = AiT(CONFIG)
    model = deepcopy(alone)
    alone.to(accelerator.device)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-4))
    optimizer_alone = torch.optim.AdamW(alone.parameters(), 1e-4)
    own = Share(distributed.rank(), distributed.num_ranks()).of(torch.arange(BATCH)[None])[0]
    images, labels = (x.to(accelerator.device) for x in draw(3))
    for x, y in zip(images, labels, strict=True):
        loss = distributed.mean(step(model, optimizer, x[own], y[own]))
        num_ranks, distributed.num_ranks = distributed.num_ranks, lambda: 1  # a pool of one rank
        expected = step(alone, optimizer_alone, x, y)
        distributed.num_ranks = num_ranks
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(model.blocks, alone.blocks, strict=True):
            torch.testing.assert_close(
                ours.workspace.priors, theirs.workspace.priors, rtol=1e-4, atol=1e-4
            )
    accelerator.end_training()


if __name__ == "__main__":
    main()
