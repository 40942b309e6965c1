"""Why the noise scale may rise by more than 10 when the learning rate falls by 10: curvature.

    python examples/temperature_curvature.py

SGD on a quadratic loss settles, along an eigenvector of the Hessian with eigenvalue l, at

    E G_l^2 = l e s_l / (B (2 - e l / (1 + m))) / (1 - m),

`s_l` being the variance of one example's gradient along it, `e` the learning rate, `B` the batch
size, `m` the momentum (Mandt et al. 2017, arXiv 1704.04289, Eq. 14 for m = 0, without the limit of
small e). So |G|^2 goes with the temperature only while e l is small against 2 (1 + m), and a
tenfold cut lowers it by more than 10. Here the eigenvalues are those of softmax regression on MNIST
at the end of plain training, the largest 60 by Lanczos; the rest is taken as small.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh
from temperature import CUT, RECIPES, Recipe, Watch, build, fit, load

NUM_EXAMPLES = 6_000  # For Hessian and noise.
NUM_EIGENVALUES = 60


class Softmax:
    """Hessian and gradients of softmax regression with a bias, in NumPy."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        self.x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
        logits = x @ kernel + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        self.p = odds / odds.sum(axis=1, keepdims=True)
        self.residual = self.p - np.eye(self.p.shape[1], dtype=x.dtype)[y]
        self.size = self.x.shape[1] * self.p.shape[1]

    def times_hessian(self, vector: np.ndarray) -> np.ndarray:
        """`H v`."""
        moved = self.x @ vector.reshape(self.x.shape[1], -1)
        bent = self.p * (moved - (self.p * moved).sum(axis=1, keepdims=True))
        return (self.x.T @ bent).ravel() / len(self.x)

    def noise_along(self, vectors: np.ndarray) -> np.ndarray:
        """Variance of one example's gradient along the columns."""
        shaped = vectors.reshape(self.x.shape[1], self.p.shape[1], -1)
        slopes = np.einsum("nf,nc,fck->nk", self.x, self.residual, shaped, optimize=True)
        return slopes.var(axis=0)

    def trace_of_product(self) -> float:
        """`tr(H Sigma)` over all pairs of examples, but for the small `G'HG`."""
        along = (self.x @ self.x.T) ** 2  # Every gradient is an outer product.
        bent = self.p @ self.residual.T**2 - (self.p @ self.residual.T) ** 2
        return float(np.mean(along * bent))


def predicted_rise(
    eigenvalues: np.ndarray, noise: np.ndarray, rest: float, recipe: Recipe
) -> float:
    """Factor by which `|G|^2` falls when the learning rate is cut."""

    def settled(rate: float) -> float:
        bent = 2 - rate * eigenvalues / (1 + recipe.momentum)
        if bent.min() <= 0:
            return np.nan  # Unstable: the quadratic picture is over.
        return rate * (float(np.sum(eigenvalues * noise / bent)) + rest / 2)

    return settled(recipe.learning_rate) / settled(recipe.learning_rate / CUT)


def main() -> None:
    """Prints one line per recipe of softmax regression."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-examples", type=int, default=NUM_EXAMPLES)
    args = parser.parse_args()
    print(
        "recipe: largest eigenvalue times learning rate, share of tr(H Sigma) seen, fall of |G|^2"
    )
    for name, recipe in RECIPES.items():
        if recipe.hidden:
            continue
        keras.utils.set_random_seed(0)
        model, data = build(recipe, recipe.learning_rate), load(recipe, 0)
        fit(model, data, recipe, Watch(recipe.updates(recipe.warm_up)))
        x, y = (values[: args.num_examples] for values in data)
        softmax = Softmax(*model.get_weights(), x, y)
        operator = LinearOperator((softmax.size,) * 2, softmax.times_hessian, dtype=np.float32)
        eigenvalues, vectors = eigsh(operator, NUM_EIGENVALUES, which="LA")
        noise = softmax.noise_along(vectors)
        total = softmax.trace_of_product()
        seen = float(np.sum(eigenvalues * noise))
        rise = predicted_rise(eigenvalues, noise, max(total - seen, 0.0), recipe)
        print(
            f"{name}: {recipe.learning_rate * eigenvalues.max():.2f}, {seen / total:.2f}, "
            f"{rise:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
