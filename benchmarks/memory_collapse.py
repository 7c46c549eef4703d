"""Show how the memory of an untrained AiT-Small collapses without dropout when it is written to.

`python benchmarks/memory_collapse.py PATH/TO/cifar10 32` passes 41 batches of 32 images of
CIFAR-10 without updating a weight. Every eight batches it prints the balance loss and the
effective rank of the memory of each layer; docs/explanation/log.md quotes both, for 32 and 512
images.
"""

import sys
from dataclasses import replace

import torch

from associative_transformer import AIT_SMALL, AiT
from associative_transformer.data import ImagesConfig
from associative_transformer.functional import effective_rank

NUM_BATCHES, EVERY = 41, 8


@torch.no_grad()
def main() -> None:
    source, batch_size = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    data = ImagesConfig("cifar10", source=source).load(torch.device("cpu"))
    config = replace(AIT_SMALL, workspace=replace(AIT_SMALL.workspace, dropout=0.0))
    model = AiT(config)  # in training mode, so that it writes
    print("batches, balance loss, effective rank of each layer")
    batches = data.train.train_batches(batch_size, seed=0, epoch=0)
    for i, batch in zip(range(NUM_BATCHES), batches, strict=False):
        balance_loss = model(batch.images).aux_loss
        if i % EVERY == 0:
            ranks = [f"{effective_rank(block.workspace.priors):.2f}" for block in model.blocks]
            print(i + 1, f"{balance_loss:.3f}", *ranks)


if __name__ == "__main__":
    main()
