"""`leakage.png`: the best reconstructions of images beside their originals, a pair of rows an attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import Truth

SHOWN = 10
MAX_ATTACKS = 16


def draw(path: Path, attacks: Sequence[tuple[str, InputGuess, Truth]]) -> bool:
    """Write the picture; False where no input is an image.

    Raises ModuleNotFoundError where matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [each for each in attacks if _is_image(each[1].inputs)][:MAX_ATTACKS]
    if not shown:
        return False
    figure = pyplot.figure(figsize=(SHOWN * 0.9, 2.15 * len(shown)), layout="constrained")
    parts = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    for part, (title, guess, truth) in zip(parts, shown, strict=True):
        originals, found, errors = guess.beside(truth)
        axes = part.subplots(2, SHOWN, squeeze=False)
        part.suptitle(
            f"{title}: mean squared error {float(errors.mean()):.4f}", fontsize=9, x=0.01, ha="left"
        )
        for column in range(SHOWN):
            for row, images in enumerate((originals, found)):
                axis = axes[row][column]
                axis.set_axis_off()
                if column < len(images):
                    low, high = float(originals[column].min()), float(originals[column].max())
                    axis.imshow(_picture(images[column]), cmap="gray", vmin=low, vmax=high)
            if column < len(errors):
                axes[1][column].set_title(f"{float(errors[column]):.4f}", fontsize=6, y=-0.32)
        for row, name in enumerate(("original", "computed")):
            axes[row][0].text(
                -0.15, 0.5, name, fontsize=6, rotation=90, va="center", transform=axes[row][0].transAxes
            )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _is_image(inputs: Tensor) -> bool:
    return inputs.dim() == 4 and inputs.shape[1] in (1, 3) and min(inputs.shape[2:]) > 1


def _picture(image: Tensor) -> object:
    """Return the image as matplotlib takes it: [height, width], or with three channels behind, clipped to 0
    to 1."""
    if image.shape[0] == 1:
        return image[0].numpy()
    low, high = image.min(), image.max()
    return ((image - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0).numpy()
