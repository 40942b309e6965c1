"""The noise scale at frozen weights, from gradients that are never applied."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.pooled import MIN_BLOCKS, Blocks, pooled_noise_scale
from gns_keras.training import checks, keras_private
from gns_keras.training.batch_sizes import LossNormalization
from gns_keras.training.fresh_draws import FreshDraws
from gns_keras.training.gradient_tap import GradientTap
from gns_keras.training.measured_step import MeasuredStep, Measurement


class FrozenMeasurement:
    """Pools the mean gradient over all batches it is given, at the model's present weights.

    Weights, optimizer, metrics, moving statistics and seeds stay as they are. Between `num_blocks`
    and twice as many partial sums of the gradient are kept on the host; when they are full,
    neighbours are joined, so that any number of batches makes blocks of equal size.

    Args:
        model: Compiled and built model.
        num_groups: Microbatches per batch and replica.
        num_blocks: Fewest blocks once there are enough batches, at least 4. More make the
            interval a little narrower and cost memory: one gradient each.

    Reference: docs/theory.md, "Frozen weights"; McCandlish et al. 2018, arXiv 1812.06162, A.1.
    """

    def __init__(self, model: keras.Model, *, num_groups: int = 8, num_blocks: int = 8) -> None:
        if num_blocks < MIN_BLOCKS or num_groups < 2:
            raise ValueError(
                f"Expected num_blocks >= {MIN_BLOCKS} and num_groups >= 2. "
                f"Received: num_blocks={num_blocks}, num_groups={num_groups}."
            )
        if not model.built:
            raise ValueError("The model has no weights yet. Call it on a batch, or fit it, first.")
        self._strategy = model.distribute_strategy
        checks.refuse_unsupported(model, self._strategy)
        if keras_private.has_several_workers(self._strategy):
            raise NotImplementedError(
                "Measuring at frozen weights reads the gradients of one process, and "
                f"{type(self._strategy).__name__} has several. Run advise() in a single process, "
                "under MirroredStrategy or on one device; NoiseScaleMonitor works here."
            )
        if not model.optimizer.built:
            with self._strategy.scope():
                model.optimizer.build(model.trainable_variables)
        normalization = LossNormalization.of(model)
        what = Measurement(
            components=(0,) * len(model.trainable_variables),
            num_components=1,
            microbatches=num_groups,
            is_sum=normalization.is_sum,
        )
        self._tap = GradientTap(model, normalization)
        self._step = MeasuredStep(model, model.train_step, self._tap, None, what)
        self._divided = not normalization.is_sum  # Keras divides a mean loss by the replicas.
        self._pass = self._replica_pass
        if not model.run_eagerly:
            self._pass = tf.function(self._replica_pass, reduce_retracing=True, autograph=False)
        self._draws = FreshDraws(model)
        self._max_blocks = 2 * num_blocks
        self._per_block = 1
        self._blocks: list[_Block] = []
        self._products = np.zeros((0, 0))
        self._filling: _Block | None = None
        self._filled = 0
        self._unit_size: float | None = None

    @property
    def num_examples(self) -> int:
        """Examples measured so far."""
        blocks = [*self._blocks, *([self._filling] if self._filling else [])]
        return round(sum(block.size for block in blocks))

    def add_batch(self, data: Any) -> None:
        """Measures one batch.

        Args:
            data: What `model.train_step` takes, with the global batch as first axis. All batches
                must have the same size, a multiple of replicas times `num_groups`.

        Raises:
            ValueError: The batch has another size than the first one.
        """
        with self._tap.installed(), self._draws.another():
            results = self._pass(self._distributed(data))
        replicas = zip(
            *(self._strategy.experimental_local_results(r) for r in results), strict=True
        )
        block = _Block.joined([_Block.of(*values) for values in replicas])
        if self._unit_size is None:
            self._unit_size = block.size
        if block.size != self._unit_size:
            raise ValueError(
                f"Expected batches of {self._unit_size:.0f} (effective) examples like the first "
                f"one. Received {block.size:.0f}. Batch with drop_remainder=True."
            )
        self._filling = block if self._filling is None else self._filling.plus(block)
        self._filled += 1
        if self._filled == self._per_block:
            self._close_block()

    def reset(self) -> None:
        """Forgets all batches, to measure at other weights without compiling anew."""
        self._per_block, self._filled, self._filling = 1, 0, None
        self._draws.restart()
        self._blocks = []
        self._products = np.zeros((0, 0))

    def noise_scale(self, confidence: float = 0.95, *, between_blocks: bool = False) -> NoiseScale:
        """Returns the pooled noise scale; unresolved while there are fewer than four blocks.

        Args:
            confidence: Coverage of the interval.
            between_blocks: Batches of one block resemble each other, those of different blocks do
                not: with `num_blocks` of 8, blocks are 8 equal parts of 8 times 2, 4, 8, ...
                batches.
        """
        if len(self._blocks) < MIN_BLOCKS:
            return NoiseScale(
                value=float("nan"),
                interval=(float("nan"), float("nan")),
                confidence=confidence,
                num_examples=self.num_examples,
            )
        size = self._blocks[0].size
        return pooled_noise_scale(
            Blocks(
                inner_products=self._products / size**2,
                weighted_sq_norms=np.array([block.weighted for block in self._blocks]),
                num_groups=np.array([block.count for block in self._blocks]),
                block_size=size,
            ),
            confidence=confidence,
            between_blocks=between_blocks,
        )

    def _close_block(self) -> None:
        block, self._filling, self._filled = self._filling, None, 0
        row = np.array([other.dot(block) for other in self._blocks])
        grown = np.zeros((len(row) + 1, len(row) + 1))
        grown[:-1, :-1], grown[-1, :-1], grown[:-1, -1] = self._products, row, row
        grown[-1, -1] = block.dot(block)
        self._products = grown
        self._blocks.append(block)
        if len(self._blocks) == self._max_blocks:
            self._blocks = [
                a.plus(b) for a, b in zip(self._blocks[::2], self._blocks[1::2], strict=True)
            ]
            half = len(self._blocks)
            self._products = grown.reshape(half, 2, half, 2).sum(axis=(1, 3))
            self._per_block *= 2

    def _replica_pass(self, data: Any) -> Any:
        return self._strategy.run(self._one_replica, args=(data,))

    def _one_replica(self, data: Any) -> Any:
        groups, _ = self._step.microbatch_pass(data)
        factor = float(self._strategy.num_replicas_in_sync) if self._divided else 1.0
        flat = tf.concat([tf.reshape(part, [-1]) for part in groups.total], axis=0)
        return flat * factor, groups.weighted[0] * factor**2, groups.count, groups.size

    def _distributed(self, data: Any) -> Any:
        count = self._strategy.num_replicas_in_sync
        tensors = keras.tree.map_structure(
            lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), data
        )
        if count == 1:
            return tensors

        def own_share(context: Any) -> Any:
            index = context.replica_id_in_sync_group
            return keras.tree.map_structure(
                lambda leaf: None if leaf is None else tf.split(leaf, count)[index], tensors
            )

        return self._strategy.experimental_distribute_values_from_function(own_share)


class _Block:
    """Sums over some batches: gradient total, `sum b|g|^2`, groups and examples."""

    def __init__(self, total: np.ndarray, weighted: float, count: float, size: float) -> None:
        self.total, self.weighted, self.count, self.size = total, weighted, count, size

    @staticmethod
    def of(total: Any, weighted: Any, count: Any, size: Any) -> "_Block":
        return _Block(np.asarray(total), float(weighted), float(count), float(size))

    @staticmethod
    def joined(blocks: list["_Block"]) -> "_Block":
        first, *others = blocks
        for other in others:
            first = first.plus(other)
        return first

    def plus(self, other: "_Block") -> "_Block":
        return _Block(
            self.total + other.total,
            self.weighted + other.weighted,
            self.count + other.count,
            self.size + other.size,
        )

    def dot(self, other: "_Block") -> float:
        return float(np.dot(self.total, other.total))
