"""Measure how long it takes to generate the data sets that are not downloaded.

`python benchmarks/generate_data.py` prints the seconds for 50,000 Triangle images on one thread,
and for all of Sort-of-CLEVR: 10,000 pictures with ten questions of each of three types, their
answers and the best guesses. docs/explanation/reproduce.md quotes both.
"""

import time

import torch

from associative_transformer.data import sort_of_clevr, triangle
from associative_transformer.data.questions import TYPES, encode
from associative_transformer.data.scenes import draw_pictures


def generate_triangles() -> None:
    triangle.generate_triangles(triangle.TriangleConfig(), triangle.TRAIN, 50_000)


def generate_sort_of_clevr() -> None:
    config = sort_of_clevr.SortOfClevrConfig(question_types=TYPES)
    for split in (sort_of_clevr.TEST, sort_of_clevr.TRAIN):
        items = sort_of_clevr.generate_items(config, split)
        draw_pictures(items.scenes)
        encode(items.questions)
    sort_of_clevr.best_guesses(items)


def main() -> None:
    threads = torch.get_num_threads()
    for name, generate, num_threads in (
        ("Triangle", generate_triangles, 1),
        ("Sort-of-CLEVR", generate_sort_of_clevr, threads),
    ):
        torch.set_num_threads(num_threads)
        start = time.perf_counter()
        generate()
        print(f"{name}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
