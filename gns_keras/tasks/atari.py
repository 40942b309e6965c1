"""Seven Atari games: a convolutional policy and value function, trained with A2C and RMSProp.

The paper's appendix A.4.2 names the algorithm, "adapted from OpenAI Baselines", RMSProp with
alpha = 0.99 and epsilon = 1e-5, rollouts of 5 steps, the batch varied by the number of
environments, and up to 500 random steps at the beginning. The rest is Baselines' A2C: the network
of Mnih et al. 2015 with orthogonal initial weights, discount 0.99, weight 0.5 of the value loss and
0.01 of the entropy, gradients clipped to a norm of 0.5.

Three things are otherwise. The learning rate is ten times that of Baselines, with which Breakout
learned next to nothing in 900,000 frames, and constant; Baselines lets it fall to 0. Keras'
RMSProp starts with mean squares of 0, that of TensorFlow 1 with 1, which makes its first several
hundred updates small. The step that presses the fire button at the beginning of a new life is part
of a rollout, with an advantage of 0; Baselines leaves it out.
"""

import functools
from typing import TYPE_CHECKING, Any

from gns_keras.tasks import Task

if TYPE_CHECKING:
    import keras

    from gns_keras.tasks.atari_rollouts import Rollouts

# The games of the paper, by the names of their ROMs, with the number of their actions.
GAMES = {"alien": 18, "beam_rider": 9, "breakout": 4, "pong": 6, "qbert": 6, "seaquest": 18,
         "space_invaders": 6}  # fmt: skip
NUM_STEPS = 5
NUM_ENVIRONMENTS = 16
LEARNING_RATE = 0.007  # Of 0.0007 (Baselines'), 0.0021, 0.007 and 0.02; on Breakout alone.


def build_model(game: str = "pong") -> "keras.Model":
    """Returns a new model, compiled with RMSProp.

    Its layer "network" takes single observations, uint8 of shape `(4, 84, 84)`, and returns logits
    "policy" and a "value"; the model does the same for rollouts of 5.

    Args:
        game: A key of `GAMES`.
    """
    import keras

    from gns_keras.tasks.actor_critic import PolicyLoss

    network = _network(GAMES[game])
    frames = keras.Input((NUM_STEPS, 4, 84, 84), dtype="uint8", name="frames")
    seen = network(keras.ops.reshape(frames, (-1, 4, 84, 84)))
    outputs = {
        "policy": keras.ops.reshape(seen["policy"], (-1, NUM_STEPS, GAMES[game])),
        "value": keras.ops.reshape(seen["value"], (-1, NUM_STEPS)),
    }
    model = keras.Model(frames, outputs, name=f"atari_{game}")
    model.compile(
        optimizer=keras.optimizers.RMSprop(
            LEARNING_RATE, rho=0.99, epsilon=1e-5, global_clipnorm=0.5
        ),
        loss={"policy": PolicyLoss(0.01), "value": keras.losses.MeanSquaredError()},
        loss_weights={"policy": 1.0, "value": 0.5},
    )
    return model


def _network(num_actions: int) -> "keras.Model":
    """The network of Mnih et al. 2015 (Nature 518), with two heads."""
    import keras

    layers = keras.layers

    def scaled(scale: float) -> Any:
        return keras.initializers.Orthogonal(scale)

    frame = keras.Input((4, 84, 84), dtype="uint8", name="frame")
    hidden = layers.Rescaling(1 / 255)(layers.Permute((2, 3, 1))(frame))
    for filters, size, stride in [(32, 8, 4), (64, 4, 2), (64, 3, 1)]:
        hidden = layers.Conv2D(
            filters, size, stride, activation="relu", kernel_initializer=scaled(2**0.5)
        )(hidden)
    hidden = layers.Flatten()(hidden)
    hidden = layers.Dense(512, activation="relu", kernel_initializer=scaled(2**0.5))(hidden)
    logits = layers.Dense(num_actions, kernel_initializer=scaled(0.01), name="policy")(hidden)
    value = layers.Dense(1, kernel_initializer=scaled(1.0), name="value")(hidden)
    outputs = {"policy": logits, "value": keras.ops.squeeze(value, -1)}
    return keras.Model(frame, outputs, name="network")


def draw_data(model: "keras.Model", game: str = "pong") -> "Rollouts":
    """Returns rollouts that `model` plays with the weights that it has when they are asked for."""
    from gns_keras.tasks.atari_rollouts import Rollouts

    return Rollouts(model, game, batch_size=NUM_ENVIRONMENTS, num_steps=NUM_STEPS)


def load_data(split: str = "train", *, game: str = "pong") -> Any:
    """Always refuses: the data depend on the model.

    Raises:
        NotImplementedError: With what to do instead.
    """
    raise NotImplementedError(
        f"atari_{game} has no data without a model: its policy plays the game, so that batches "
        "change with the weights. Use get_task(...).training_data(model), or `gns-keras advise "
        f"atari_{game}`; a sweep takes get_task(...).training_data itself."
    )


def _task(game: str) -> Task:
    title = game.replace("_", " ").title()
    ran = "50 steps, and the noise scale of the initial weights"
    if game == "breakout":
        ran = "1,460,000 frames, to a score of 15 (1.3 by chance), noise scales along the run"
    return Task(
        name=f"atari_{game}",
        description=f"convolutional policy and value function on the Atari game {title}, A2C",
        unit="frames",
        data_needed="played while training; gymnasium and ale-py (the extra `rl`)",
        build_model=functools.partial(build_model, game),
        load_data=functools.partial(load_data, game=game),
        draw_data=functools.partial(draw_data, game=game),
        batch_size=NUM_ENVIRONMENTS * NUM_STEPS,
        learning_rate=LEARNING_RATE,
        optimizer="rmsprop",
        goals=(0.009, 0.015) if game == "breakout" else (),  # By chance 0.0072.
        status=f"learning rate tuned on Breakout; {ran}",
        units_per_example=NUM_STEPS,
    )


TASK = _task("pong")
VARIANTS = {task.name: task for game in GAMES if (task := _task(game)).name != TASK.name}
