r"""Final answers: finding them (`\boxed{...}`), reading them, and comparing them."""

from capo_ds.tasks.answers.boxes import BOX, Box, find_boxes

__all__ = ["BOX", "Box", "find_boxes"]
